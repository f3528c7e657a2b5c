"""The faults that `python -m tests.planted_faults` plants: by file, each (what it does, old text, new text, tests).

The old text stands exactly once in its file; the tests are those that must find the fault, in less than a minute.
"""

# ruff: noqa: E501  (one fault a line reads as the table that it is)

_MODES, _LABELS = "tests/test_wiring_modes.py::test_", "tests/test_wiring_labels.py::test_"
_TRAINING, _RESUME = "tests/test_training.py::test_", "tests/test_resume.py::test_"
_RECURSEED = "tests/test_recurseed_program.py::test_"
_CONFIG, _METRICS = "tests/test_config.py::test_", "tests/test_metrics.py::test_"

MODE_0 = f"{_MODES}mode_0_trains_as_the_reference"
MODE_2_STARTS = f"{_MODES}mode_2_starts_from_mode_0_with_both_heads_and_lets_the_seed_teach_first"
MODE_0_KEEPS = f"{_MODES}mode_0_keeps_every_second_checkpoint_and_the_last"
MODE_0_SHOWS = f"{_MODES}pictures_of_mode_0_are_what_its_network_makes_of_whole_images"
MODE_1 = f"{_MODES}mode_1_stores_what_the_reference_predicts"
MODE_1_WEIGHTS = f"{_MODES}mode_1_takes_the_pair_that_weights_names"
MODE_2 = f"{_MODES}mode_2_trains_as_the_reference"
MODE_3 = f"{_MODES}mode_3_writes_the_masks_of_the_reference"
MODE_4 = f"{_MODES}mode_4_trains_as_the_reference"
ALL = f"{_MODES}mode_all_runs_the_four_in_turn_and_weights_start_the_training_only"
PRETRAINED = f"{_LABELS}pretrained_classifier_trains_as_the_reference"
SCRATCH = f"{_LABELS}classifier_from_scratch_trains_as_the_reference"
CAMS = f"{_LABELS}cams_and_their_crfs_are_those_of_the_reference"
AFFINITY = f"{_LABELS}affinity_trains_as_the_reference"
RUNS = "tests/test_wiring_runs.py::test_"
PRECISION = f"{RUNS}every_program_computes_in_the_precision_it_is_told"
MADE_FROM = f"{RUNS}every_folder_says_what_it_was_made_from"
NEXT = f"{RUNS}every_program_names_the_one_that_comes_next"
_ATTACK = "tests/test_attack.py::test_"
_JOBS = "tests/test_study.py::test_what_is_done_is_not_believed_once_what_it_was_made_from_has_changed"
PSA = f"{_LABELS}psa_and_its_crf_are_those_of_the_reference"
EVAL = f"{_LABELS}eval_masks_counts_as_one_does_by_hand"
RELEASED = f"{_CONFIG}released_recipe_changes_differences_3_to_9_only"
PUBLISHED = f"{_CONFIG}no_flags_are_the_published_setting"
PASSED_ON = f"{_CONFIG}proposed_commands_carry_every_setting"
CLAIMED = f"{_CONFIG}a_stage_is_claimed_for_what_it_depends_on"
AGAIN = "tests/test_pipeline.py::test_what_is_missing_is_made_again_and_equal"
RESUMED = f"{_RESUME}a_run_that_stops_at_any_step_ends_bit_by_bit_where_the_whole_one_does"
NOT_FINITE = f"{_TRAINING}loss_that_is_not_finite_stops_with_step_and_images_and_keeps_the_last_state"
SIGNALS = f"{_RESUME}signal_saves_and_leaves_and_the_run_goes_on_exactly"
PASS = f"{RUNS}a_batch_of_a_pass_is_a_function_of_the_list_alone"
TWO_ADVISERS = "tests/test_advisers.py::test_mode_2_starts_from_what_all_advisers_gave"
STORED_IN_TURN = "tests/test_advisers.py::test_maps_of_each_adviser_are_stored_and_make_the_seed"
PAGES = "tests/test_pages.py::test_linked_files_exist_and_lie_on_this_disk"
SHOWN = "tests/test_pages.py::test_columns_show_what_their_titles_say"
POLY = f"{_TRAINING}poly_rate_by_hand"

FAULTS: dict[str, list[tuple[str, str, str, str]]] = {
    "modes/ssdd/networks.py": [
        ("heads at the backbone's rate", "(heads, 10.0)", "(heads, 1.0)", MODE_0),
        ("DD-Net at the backbone's rate", "parameters()), 10.0)", "parameters()), 1.0)", MODE_0),
        ("backbone at twice its rate", "(backbone, 1.0)", "(backbone, 2.0)", MODE_2),
        ("colour jitter left out", 'jittered(batch["image"], batch["order"], batch["factors"]) if "order" in batch else batch["image"]', 'batch["image"]', MODE_0),
        ("images not normalised", "normalise(images).con", "(images / 255).con", MODE_0),
        ("advisers in reverse", "for name in batch if name", "for name in reversed(batch) if name", TWO_ADVISERS),
        ("all images mixed", "< config.certain_mix", "< 1", "tests/test_certain_mix.py::test_a_share_of_the_images_is_mixed"),
        ("conv1a trained", "segmentation.encoder.conv1a.requires_grad_(False)", "pass", MODE_0),
        ("BatchNorm trained", "    train_with_frozen_batchnorm(step)\n    segm", "    step.train()\n    segm", MODE_2),
        ("no dropout after the pictures", "train_with_frozen_batchnorm(step)\n        if", "pass\n        if", MODE_0),
        ("dropout flag ignored", "dynamic, config.dropout,", "dynamic, 0.0,", MODE_0),
        ("no weight decay of the DD-Net", "parameters()), 10.0)], config.momentum, config.weight_decay", "parameters()), 10.0)], config.momentum, 0", MODE_0),
        ("no momentum of the backbone", "(heads, 10.0)], config.momentum", "(heads, 10.0)], 0.0", MODE_0),
        ("backbone does not start from the classifier", 'checkpoint.load_into(segmentation.encoder, weights, unused=("fc8.",))', "checkpoint.load_state(weights)", MODE_0),
        ("DD-Net saved as the network", '("seg", step.segmentation)', '("seg", step.ddnet)', MODE_0),
        ("checkpoints an epoch late", "return epoch % config.checkpoint_epochs", "return (epoch + 1) % config.checkpoint_epochs", MODE_0_KEEPS),
        ("last checkpoint not kept", "(config.static_checkpoint, config.epochs)", "(config.static_checkpoint,)", MODE_0_KEEPS),
        ("checkpoint of mode 1 not kept", "(config.static_checkpoint, config.epochs)", "(config.epochs,)", f"{_MODES}mode_0_keeps_the_checkpoint_that_mode_1_takes"),
        ("cosine an epoch longer", "cosine_rate(config.lr, config.epochs, ", "cosine_rate(config.lr, config.epochs + 1, ", MODE_2),
        ("evaluation's batch size", "batch=config.bn,", "batch=config.eval_batch,", MODE_0),
        ("pictures drawn while dropout acts", "        step.eval()\n", "", MODE_0_SHOWS),
        ("integration always whole", 'config.map_weight, config.integration,', 'config.map_weight, "both",', f"{_CONFIG}favouring_knowledge_turns_the_bias_around"),
        ("maps always read as published", 'config.integration, config.reading)', 'config.integration)', f"{_CONFIG}favouring_knowledge_turns_the_bias_around"),
        ("bias favours knowledge", 'sign = 1 if config.bias_favours == "advice"', 'sign = 1 if config.bias_favours == "knowledge"', f"{_CONFIG}favouring_knowledge_turns_the_bias_around"),
        ("seeds with the bias of mode 2", "_integration(config, config.seed_bias, config.seed_bg)", "_integration(config, config.bias, config.bg)", MODE_1),
    ],
    "models/ssdd/regions.py": [
        ("the largest region wins", "argsort(descending=True", "argsort(descending=False", "tests/test_segments.py::test_the_smallest_region_wins_and_the_knowledge_stays_elsewhere"),
        ("what holds the background is background", "& (torch.arange(classes, device=knowledge.device) > 0)", "", "tests/test_segments.py::test_each_region_takes_its_class_by_hand"),
    ],
    "modes/ssdd/pictures.py": [
        ("pictures of the wrong masks", 'masks = {"k": module.knowledge, "a": module.advice,', 'masks = {"a": module.knowledge, "k": module.advice,', MODE_0_SHOWS),
        ("pictures of the first images only", "np.linspace(0, len(samples) - 1, count).astype(int)", "np.arange(count)", MODE_0_SHOWS),
        ("columns of knowledge and advice swapped", 'f"k{n}": f"K: {knowledge}"', 'f"k{n}": f"K: {advice}"', MODE_0_SHOWS),
        ("columns name other images", "[samples.ids[n] for n in places(samples, count)]", "samples.ids[:count]", MODE_0_SHOWS),
        ("no column for the masks of the second module", "for n in range(1, len(titles) + 1)", "for n in range(1, 2)", MODE_2),
    ],
    "modes/ssdd/static.py": [
        ("seeds no part of what it was made from", "*samples.seeds.values(), *runs", "*runs", MADE_FROM),
        ("names the wrong mode as next", "stages.command(config, 'mode 1')", "stages.command(config, 'mode 2')", NEXT),
        ("knowledge and advice swapped", "*masks_of(batch))", "*reversed(masks_of(batch)))", MODE_0),
        ("sides of mode 2", "config.static_side", "config.dynamic_side", MODE_0),
        ("epochs of mode 2", "config.static_epochs", "config.dynamic_epochs", ALL),
        ("initial weights not seeded", "torch.manual_seed(config.seed)", "pass", MODE_0),
        ("integration of the seeds", "    integration,\n", "    seed_integration as integration,\n", MODE_0_SHOWS),
        ("nothing frozen", "freeze_for_ssdd(step, segmentation)", "step.train()", MODE_0),
        ("precision ignored", "autocast(device, config.precision)", 'autocast(device, "float32")', MODE_0),
        ("DD-Net not trained", '"loss_dd": result.loss_dd', '"loss_dd": result.loss_dd.detach()', MODE_0),
    ],
    "modes/ssdd/precompute.py": [
        ("static_checkpoint ignored", "name, config.static_checkpoint)", "name)", MODE_1),
        ("--weights ignored", "    if config.weights:\n", "    if False:\n", MODE_1_WEIGHTS),
        ("dropout acts while storing", "memory_format=layout).eval()", "memory_format=layout)", MODE_1),
        ("d_K stored as d_A", "pair, (d_k, d_a), how)", "pair, (d_a, d_k), how)", MODE_1),
        ("bias of modes 0 and 2", "how, pair = seed_integration(config)", "how, pair = integration(config)", MODE_1),
        ("always augmented", "jitter_and_flip=config.precompute_augmented", "jitter_and_flip=True", MODE_1),
        ("never augmented", "jitter_and_flip=config.precompute_augmented", "jitter_and_flip=False", MODE_1),
        ("augmentation not seeded by the run", "partial(epoch_seed, config.seed)", "partial(epoch_seed, 0)", MODE_1),
        ("masks integrated the wrong way round", "tuple(samples.seeds.values())", "tuple(reversed(samples.seeds.values()))", MODE_1),
        ("flags of no class", "torch.from_numpy(read_present(root, image_id))[None]", "torch.zeros(1, classes)", MODE_1),
        ("networks fed in the wrong order", "*masks_of(batch))", "*reversed(masks_of(batch)))", MODE_1),
        ("maps of the first adviser for all", "torch.cat(one, dim=1)", "torch.cat([one[0]] * len(one), dim=1)", STORED_IN_TURN),
        ("DD-Net never loaded", "    checkpoint.load_into(ddnet, dd_weights)\n", "", MODE_1),
        ("seeds no part of what it was made from", "dd_weights, *samples.seeds.values(), *runs", "dd_weights, *runs", MADE_FROM),
    ],
    "modes/ssdd/dynamic.py": [
        ("a run goes on with another CRF", "path.exists() and (not config.fresh or runs.same_job(path))", "False", "tests/test_exact_crf.py::test_auto_takes_the_faster_and_goes_on_with_what_was_taken"),
        ("maps no part of what it was made from", "differences.folder, *runs", "*runs", MADE_FROM),
        ("precision ignored", "autocast(device, config.precision)", 'autocast(device, "float32")', PRECISION),
        ("PSA instead of m_ssdd0", 'batch["small"], m_ssdd0, seed', 'batch["small"], batch["knowledge"], seed', MODE_2),
        ("CRF on other images", 'batch["small"], m', 'batch["small"].flip(2), m', MODE_2),
        ("changed seeds taken", "    runs.need_same_seeds(config, differences.folder, list(samples.seeds.values()))\n", "", "tests/test_advisers.py::test_seeds_that_changed_after_the_mode_before_are_refused"),
        ("maps of another pair taken", "    runs.need_same_pair(config, differences.folder)\n", "", "tests/test_advisers.py::test_maps_of_another_pair_are_refused"),
        ("what knowledge and advice dispute is pasted", "mixed_batch(config, batch, m_ssdd0, agreed)", "mixed_batch(config, batch, m_ssdd0)", "tests/test_certain_mix.py::test_modes_2_and_4_train_on_mixed_images_when_asked"),
        ("m_ssdd0 with the bias of mode 2", "*maps, batch[\"present\"], seed_integration(config))", "*maps, batch[\"present\"], integration(config))", MODE_2),
        ("modules with the bias of m_ssdd0", "ddnet, integration(config), config.alpha", "ddnet, seed_integration(config), config.alpha", MODE_2),
        ("swap_maps ignored", "config.move_maps, config.swap_maps)", "config.move_maps, False)", MODE_2),
        ("move_maps ignored", "config.move_maps, config.swap_maps)", "True, config.swap_maps)", MODE_2),
        ("stored maps swapped", '(batch["d_k"], batch["d_a"])', '(batch["d_a"], batch["d_k"])', MODE_2),
        ("iterations of the labels' CRF", "config.crf_train", "config.crf_labels", MODE_2),
        ("CRF kernel of the preset", "kernel=crf_kernel(config)", "kernel=crf_kernel(type(config)())", MODE_2),
        ("the seed teaches too long", "epoch < config.seed_epochs", "epoch <= config.epochs", MODE_2_STARTS),
        ("second head fresh", "state | heads", "state", MODE_2_STARTS),
        ("alpha the wrong way round", "config.alpha,", "1 - config.alpha,", MODE_2),
        ("seed_target ignored", "config.seed_target,", '"ssdd1",', MODE_2),
        ("sides of mode 0", "config.dynamic_side", "config.static_side", MODE_2),
        ("epochs of mode 0", "config.dynamic_epochs", "config.static_epochs", ALL),
        ("initial weights not seeded", "torch.manual_seed(config.seed)", "pass", MODE_2),
        ("DD loss left out", '"loss_dd": result.loss_dd}', '"loss_dd": result.loss_dd.detach()}', MODE_2),
        ("maps of another stage", 'StoredDifferences(stages.folder(config, "mode 1"),', 'StoredDifferences(stages.folder(config, "mode 0"),', MODE_2),
        ("the first module's knowledge shown as the seed", "MODULES, 2, ", "MODULES, 1, ", MODE_2),
    ],
    "modes/scores.py": [
        ("figures of one folder for both", "kind: evaluate(folder,", 'kind: evaluate(kinds["mask"],', "tests/test_pipeline.py::test_result_file_holds_the_miou_of_the_masks_on_disk"),
    ],
    "modes/ssdd/evaluate.py": [
        ("weights no part of what it was made from", "claim(config, STAGE, [weights])", "claim(config, STAGE, [])", MADE_FROM),
        ("precision ignored", "autocast(device, config.precision)", 'autocast(device, "float32")', PRECISION),
        ("no second softmax", "torch.softmax(resize(torch.from_numpy(summed)[None], image.shape[:2]), dim=1)[0]", "resize(torch.from_numpy(summed)[None], image.shape[:2])[0]", MODE_3),
        ("iterations of the labels' CRF", "config.crf_eval,", "config.crf_labels,", MODE_3),
        ("CRF kernel of the preset", "crf_kernel(config))", "crf_kernel(type(config)()))", MODE_3),
        ("scales of the CAMs", "config.eval_scales", "config.cam_scales", MODE_3),
        ("side of the crop", "ids, config.eval_size)", "ids, config.crop)", MODE_3),
        ("network in training mode", "memory_format=layout).eval()", "memory_format=layout)", MODE_3),
        ("masks and their CRFs swapped", "(probabilities, refined)", "(refined, probabilities)", MODE_3),
        ("training images evaluated", "ids = runs.image_ids(config, config.split)", "ids = runs.image_ids(config, config.train_split)", MODE_3),
        ("images with one of two masks are done", "return all((kind /", "return any((kind /", AGAIN),
        ("--weights ignored", "    if config.weights:\n", "    if False:\n", MODE_3),
        ("scales drawn from another image", "cv2.resize(read_image(self.root, self.ids[index])", "cv2.resize(read_image(self.root, self.ids[index - 1])", MODE_3),
        ("mode 4's network not found", '"mode 4" if config.seed_source else "mode 2"', '"mode 2"', "tests/test_fixed.py::test_mode_3_before_mode_4_names_the_command"),
    ],
    "modes/ssdd/fixed.py": [
        ("seeds no part of what it was made from", 'samples.seeds["seed"], *runs', "*runs", MADE_FROM),
        ("precision ignored", "autocast(device, config.precision)", 'autocast(device, "float32")', PRECISION),
        ("a longer cosine", "cosine_rate(config.lr, config.epochs)", "cosine_rate(config.lr, config.epochs + 1)", MODE_4),
        ("sides of mode 2", "config.static_side", "config.dynamic_side", MODE_4),
        ("nothing frozen", "freeze_for_ssdd(segmentation, segmentation)", "segmentation.train()", MODE_4),
        ("initial weights not seeded", "torch.manual_seed(config.seed)", "pass", MODE_4),
        ("missing seeds found in the middle of the run", "    seeds.need(config, source, ids)\n", "", "tests/test_fixed.py::test_missing_seeds_are_named_before_training"),
    ],
    "models/ssdd/steps.py": [
        ("mode 0 learns the advice", "cross_entropy(logits, knowledge)", "cross_entropy(logits, advices[0])", MODE_0),
        ("flags of the wrong direction", "missing_class_flags(module.knowledge, module.advice, present)", "missing_class_flags(module.advice, module.knowledge, present)", MODE_0),
        ("every adviser is asked about the first knowledge", "results[-1].refined\n    return", "knowledge\n    return", "tests/test_advisers.py::test_integration_in_turn_pixel_by_pixel"),
        ("every DD module sees the first knowledge", "modules[-1].refined\n        return", "knowledge\n        return", STORED_IN_TURN),
        ("difference 6 the wrong way round", 'self.seed_target == "ssdd2"', 'self.seed_target == "ssdd1"', MODE_2),
        ("half of the K/A loss", "(2 * loss_crf + loss_seed) / 4", "(loss_crf + loss_seed) / 4", MODE_2),
        ("both modules see seg_main", "enumerate((main_features, sub_features))", "enumerate((main_features, main_features))", MODE_2),
        ("second advice is the CRF", "seed, first.refined, present", "seed, m_crf1, present", MODE_2),
        ("seed and refined swapped", "seed, teacher, self.alpha", "teacher, seed, self.alpha", MODE_2),
        ("m_sub is seg_main's", "m_sub = masked_prediction(sub,", "m_sub = masked_prediction(main,", MODE_2),
    ],
    "models/ssdd/difference.py": [
        ("unknown pixels counted", "(mask != UNKNOWN).sum())", "(mask >= 0).sum())", MODE_4),
        ("a share of all pixels", "(changed / known)", "(changed / knowledge[0].numel())", "tests/test_readings.py::test_calibrated_takes_the_share_of_the_known_pixels_that_change"),
    ],
    "evaluation/readings.py": [
        ("bias by lost classes", "np.clip(1 - self.lost", "np.clip(self.lost", "tests/test_readings.py::test_the_bias_follows_the_share_of_labelled_classes_that_the_advice_keeps"),
    ],
    "tools/growth.py": [
        ("images held out are learned", "if image_id not in chosen]", "if image_id not in seen]", "tests/test_growth.py::test_sizes_contain_the_smaller_ones_and_nobody_learns_what_is_held_out"),
    ],
    "models/psa/rates.py": [
        ("new layers at the base rate", "(10.0 if name", "(1.0 if name", PRETRAINED),
        ("biases at the base rate", '(2.0 if name.endswith("bias")', '(1.0 if name.endswith("bias")', SCRATCH),
    ],
    "models/resnet38.py": [
        ("b2_2 trained", "network.b2_1, network.b2_2)", "network.b2_1)", PRETRAINED),
    ],
    "engine/training.py": [
        ("factors ignored", 'rate * group["factor"]', "rate", MODE_0),
        ("gradients pile up", "optimiser.zero_grad(set_to_none=True)", "pass", MODE_0),
        ("rate of the epoch's start", "at.epoch + at.step / order.steps", "float(at.epoch)", MODE_0),
        ("rate an epoch ahead", "run.rate(moment)", "run.rate(moment + 1)", MODE_0),
        ("cosine over the bare epochs", "int(1.2 * epochs)", "int(epochs)", f"{_TRAINING}cosine_rate_by_hand"),
        ("cosine not halved", "+ 1) / 2", "+ 1)", MODE_0),
        ("poly without power", "** power", "** 1", PRETRAINED),
        ("poly of one epoch more", "1 - epoch / epochs", "1 - epoch / (epochs + 1)", POLY),
        ("weight decay left out", "weight_decay=weight_decay,", "weight_decay=0,", MODE_0),
        ("momentum left out", "momentum=momentum,", "momentum=0,", MODE_0),
        ("DD-Net never stepped", "    for optimiser in run.optimisers:\n        optimiser.step()", "    run.optimisers[0].step()", MODE_0),
        ("weights that were lost stay lost", "        run.after_epoch(at.epoch, None)\n", "        pass\n", f"{_TRAINING}finished_run_trains_no_further"),
        ("state before the checkpoint", "            run.after_epoch(at.epoch + 1, journal.history)\n            at = Standing(at.epoch + 1)\n            save(run, at, order.steps)\n", "            at = Standing(at.epoch + 1)\n            save(run, at, order.steps)\n            run.after_epoch(at.epoch, journal.history)\n", f"{_TRAINING}interrupted_run_ends_bit_by_bit_where_the_whole_one_does"),
        ("signals forgotten", "            stop_if_asked(interruption.asks()[1], run, config, at, order.steps)\n", "", f"{_RESUME}signal_after_the_last_step_of_an_epoch_is_not_lost"),
        ("a signal does not save", "if signal_number or (is_time and at.step < order.steps):", "if is_time and not signal_number and at.step < order.steps:", SIGNALS),
    ],
    "engine/loading.py": [
        ("the same dropout at every step", 'f"{seed} {epoch} {step} {', 'f"{seed} {epoch} 0 {', MODE_0),
        ("the same order in every epoch", "epoch_seed(self.seed, self.epoch)", "epoch_seed(self.seed, 0)", MODE_0),
        ("order not seeded by the run", "epoch_seed(self.seed, self.epoch)", "epoch_seed(0, self.epoch)", MODE_0),
        ("samples not seeded", "torch.manual_seed(seed)\n", "pass\n", MODE_0),
        ("samples read again", "range(self.step, self.steps)", "range(0, self.steps)", RESUMED),
        ("processes get blocks, not turns", "places[distributed.rank() :: distributed.processes()]", "places.view(distributed.processes(), -1)[distributed.rank()]", f"{_TRAINING}global_batches_are_the_same_whatever_the_number_of_processes"),
    ],
    "engine/passes.py": [
        ("a batch depends on what is done", "mine = [places for places in mine if", "mine = [[place for place in places if ids[place] in to_do] for places in mine if", PASS),
        ("what is done is written again", "if image_id in self.to_do:", "if True:", PASS),
        ("all samples drawn with one seed", "(place, seeds(place))", "(place, seeds(0))", MODE_1),
        ("only the first batch shared out", "distributed.shard(whole)", "distributed.shard(whole)[:1]", PASS),
    ],
    "engine/resume.py": [
        ("losses that are not finite pass", "if not torch.isfinite(row).all():", "if False:", NOT_FINITE),
        ("any state is taken", 'if state.get("identity", identity) != identity:', "if False:", f"{_RESUME}the_state_of_another_run_is_refused"),
        ("a save within an epoch forgets figures", '"unseen": recent,', '"unseen": [],', RESUMED),
        ("momentum lost", '{"state": content["state"], "param_groups": own}', '{"state": {}, "param_groups": own}', RESUMED),
        ("weights not read", '            network.load_state_dict(state["networks"][name])\n', '            state["networks"][name]\n', RESUMED),
        ("step not kept", '"step": at.step,', '"step": 0,', RESUMED),
        ("averages start anew", '"totals": at.totals,', '"totals": {},', RESUMED),
        ("handlers stay", "            signal.signal(number, handler)\n", "            pass\n", SIGNALS),
    ],
    "engine/distributed.py": [
        ("any number of processes", "if not word.isdecimal() or int(word) < 1:", "if False:", "tests/test_surprises.py::test_a_number_of_processes_on_this_machine_that_cannot_be"),
        ("bfloat16 and float32 confused", 'return precision == "bfloat16"', 'return precision == "float32"', MODE_0),
        ("shards overlap", "items[rank() :: processes()]", "items[rank() :]", f"{_TRAINING}shards_of_a_list_are_disjoint_and_complete"),
        ("other code not noticed", "if differs:", "if False:", "tests/test_joining.py::test_machines_of_different_code_are_refused"),
        ("a CPU among GPUs not noticed", "if its_kind != kind:", "if False:", "tests/test_joining.py::test_a_machine_without_a_gpu_among_others_is_refused_before_they_are_joined"),
        ("bfloat16 refused when a folder keeps it", '        if precision == "bfloat16":\n', "        if False:\n", "tests/test_joining.py::test_bfloat16_is_refused_before_a_folder_keeps_it[train_cls]"),
        ("waiting for ever for other machines", "    late.start()\n", "", "tests/test_joining.py::test_a_machine_that_cannot_be_reached_ends_the_run[1-localhost]"),
        ("a CPU in place of a GPU with a bad driver", "        if trouble:", "        if False:", "tests/test_joining.py::test_a_driver_that_torch_does_not_like_is_no_reason_to_take_the_cpu"),
        ("GPUs by the global rank", "'LOCAL_RANK'", "'RANK'", "tests/test_distributed.py::test_every_gpu_gets_an_index"),
    ],
    "engine/workers.py": [
        ("every process takes all cores", "// processes_here()", "", "tests/test_joining.py::test_processes_share_the_cores"),
        ("kernel's terms swapped", "        config.crf_gaussian_sxy,\n        config.crf_gaussian_weight,", "        config.crf_gaussian_weight,\n        config.crf_gaussian_sxy,", MODE_3),
    ],
    "engine/checkpoint.py": [
        ("torch's word on a full disk", "error.__context__ if isinstance(error.__context__, OSError) else error from None", "InputError(str(error)) from None", "tests/test_checkpoint.py::test_a_disk_that_is_full_is_named_as_the_reason"),
        ("`module.` kept", '{key.removeprefix("module."): tensor', "{key: tensor", "tests/test_checkpoint.py::test_weights_load_with_and_without_module_in_front"),
        ("views saved whole", "value.detach().cpu().clone()", "value.detach().cpu()", "tests/test_checkpoint.py::test_a_view_is_saved_alone"),
        ("classes not kept", '"classes": list(classes)', '"classes": []', MODE_0),
        ("settings of a stage not kept", "in (RUN, STAGE)}", "in (RUN,)}", MODE_0),
    ],
    "engine/history.py": [
        ("epochs behind by a step", "(step + 1) / self.steps", "step / self.steps", MODE_0),
        ("what is trained again stays", 'if line.get("epoch", 0) <= done + 1e-9', "if True", "tests/test_pages.py::test_history_of_epochs_that_are_trained_again_is_dropped"),
        ("looks every ten steps only", " or at.step == steps:", ":", MODE_0),
        ("pages told of no masks", '"masks": masks,', '"masks": [],', MODE_0_SHOWS),
    ],
    "engine/locks.py": [
        ("two runs in one folder", "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "tests/test_locks.py::test_second_run_in_a_folder_is_refused_until_the_first_is_dead"),
        ("other processes of a run hold nothing", "fcntl.lockf(file, fcntl.LOCK_EX, 1, number)", "pass", "tests/test_locks.py::test_a_run_counts_as_alive_as_long_as_one_of_its_processes"),
    ],
    "engine/runs.py": [
        ("inputs not held", "        locks.lock_for_reading(folder)\n", "", "tests/test_locks.py::test_what_a_run_reads_is_not_made_anew_meanwhile"),
        ("inputs no part of the identity", '(*_settings(config, stage), "made_from")', "_settings(config, stage)", f"{_CONFIG}folder_made_from_other_weights_is_refused"),
        ("identity of all settings", '[:16]\n    own["stage"]', '[:16] + str(config.workers)\n    own["stage"]', f"{_CONFIG}a_change_of_an_early_stage_reaches_the_last"),
        ("--fresh forgotten", "if config.fresh and folder.exists() and not same_job(path):", "if False:", f"{_CONFIG}fresh_moves_the_old_folder_aside_each_time"),
        ("--fresh at every restart", " and not same_job(path):", ":", "tests/test_joining.py::test_fresh_moves_aside_once_a_job"),
        ("epoch asked for ignored", "checkpoint_path(folder, network, epoch or last)", "checkpoint_path(folder, network, last)", MODE_1),
        ("links in a result folder", "    refuse_links(folder)\n", "", f"{_ATTACK}nothing_is_written_through_a_link_over_what_is_read[mask]"),
        ("half-written files stay", "    remove_partial(folder)\n", "", "tests/test_faults.py::test_what_a_killed_run_left_half_written_is_removed"),
    ],
    "engine/notes.py": [
        ("folders without identity", 'return str(read_config(path / "config.json")["identity"])', 'return ""', f"{_CONFIG}a_change_of_an_early_stage_reaches_the_last"),
    ],
    "engine/commands.py": [
        ("other photographs believed", "notes.pictures_digest(config, split) for split", '"" for split', f"{_JOBS}[photographs or annotations-tools.study]"),
        ("other true masks believed", "for image_id in ids),", "for image_id in ()),", f"{_JOBS}[true masks-tools.study]"),
        ("other seeds believed", "for folder in read)", "for folder in ())", f"{_JOBS}[seeds or labels-tools.growth]"),
        ("no word of what was read", '"made_from": inputs, ', "", f"{_JOBS}[photographs or annotations-tools.study]"),
    ],
    "engine/stages.py": [
        ("masks of all sources in one folder", 'fixed = f"fixed_{re.sub(r\'[:/]\', \'_\', source)}_" if source else ""', 'fixed = ""', "tests/test_fixed.py::test_each_source_has_its_own_run_and_masks[psa]"),
        ("PSA in the folder of a CRF'd CAM", 'Seeds("psa", "PSA", f"{RESULTS}/out_aff")', 'Seeds("psa", "PSA", f"{RESULTS}/out_la_crf")', MODE_0),
        ("static SSDD in the logs", 'Seeds("ssdd", "static SSDD", "precompute/{modelid}", ".png")', 'Seeds("ssdd", "static SSDD", "logs/{modelid}", ".png")', MODE_1),
        ("seed source left out of the next command", "own = config.seed_source and", "own = False and", NEXT),
        ("checkpoints numbered with three digits", "{epoch:04d}", "{epoch:03d}", MODE_0_KEEPS),
    ],
    "engine/seeds.py": [
        ("PSA and PSA+CRF swapped", '{"crf": "psa_crf"}', '{"crf": "psa", "psa": "psa_crf"}', MODE_4),
        ("PSA+CRF read from the folder of PSA", "stages.filled(seeds.folder, config.modelid)", "stages.filled(stages.STAGES[stage].folders[0], config.modelid)", MODE_4),
        ("knowledge is the advice", "(config.knowledge, *config.advisers)", "(*config.advisers, config.knowledge)", MODE_0),
    ],
    "prepare_labels/train_cls.py": [
        ("momentum", "sgd(groups, 0,", "sgd(groups, 0.9,", PRETRAINED),
        ("weight decay of SSDD", "sgd(groups, 0, config.label_weight_decay)", "sgd(groups, 0, config.weight_decay)", PRETRAINED),
        ("labels shifted by a class", '["present"][:, 1:]', '["present"][:, :-1]', PRETRAINED),
        ("statistics not averaged anew", "epoch == config.epochs - 1 and", "epoch == config.epochs and", SCRATCH),
        ("statistics averaged anew of frozen ones", "epoch == config.epochs - 1 and not config.weights", "epoch == config.epochs - 1", PRETRAINED),
        ("AdamW with SGD's factors", '[{"params": parameters, "factor": 1.0} for parameters, _ in groups]', '[{"params": parameters, "factor": factor} for parameters, factor in groups]', SCRATCH),
        ("sides of mode 0", "config.cls_side", "config.static_side", PRETRAINED),
        ("BatchNorm trained", "train_with_frozen_batchnorm(classifier)", "classifier.train()", PRETRAINED),
        ("rate of SSDD", "poly_rate(config.cls_lr", "poly_rate(config.lr", PRETRAINED),
        ("initial weights not seeded", "torch.manual_seed(config.seed)", "pass", SCRATCH),
    ],
    "prepare_labels/make_cam_labels.py": [
        ("precision ignored", "autocast(device, config.precision)", 'autocast(device, "float32")', PRECISION),
        ("CAMs of the next class", "torch.from_numpy(classes - 1)", "torch.from_numpy(classes % 20)", CAMS),
        ("low and high swapped", "(config.alpha_low, config.alpha_high)", "(config.alpha_high, config.alpha_low)", CAMS),
        ("iterations of the training step's CRF", "config.crf_labels", "config.crf_train", CAMS),
        ("scales of evaluation", "config.cam_scales", "config.eval_scales[:1]", CAMS),
        ("CRF kernel of the preset", "crf_kernel(config)", "crf_kernel(type(config)())", CAMS),
        ("dropout acts", "config.precision)).eval()", "config.precision)).train()", CAMS),
        ("one CRF for both", "zip(folders[1:], alphas,", "zip(folders[1:], alphas[:1] * 2,", CAMS),
    ],
    "prepare_labels/train_aff.py": [
        ("low and high swapped", "for which in (1, 2))", "for which in (2, 1))", AFFINITY),
        ("f9 at the base rate", "groups(network, NEW)", 'groups(network, ("f8_",))', AFFINITY),
        ("first blocks trained", "    freeze_first_blocks(network)\n", "", AFFINITY),
        ("BatchNorm trained", "train_with_frozen_batchnorm(network)", "network.train()", AFFINITY),
        ("rate of the classifier", "config.aff_lr", "config.cls_lr", AFFINITY),
        ("batch of the classifier", "batch=config.aff_batch", "batch=config.cls_batch", AFFINITY),
        ("cosine", "poly_rate(config.aff_lr, config.epochs, config.label_power)", "lambda e: config.aff_lr", AFFINITY),
        ("momentum", "groups(network, NEW), 0,", "groups(network, NEW), 0.9,", AFFINITY),
    ],
    "prepare_labels/make_aff_labels.py": [
        ("CAMs no part of what it was made from", "[weights, cams, *runs", "[weights, *runs", MADE_FROM),
        ("background of the CRF'd CAMs", "config.alpha_walk", "config.alpha_high", PSA),
        ("power left out", "config.walk_power,", "1.0,", PSA),
        ("twice the steps", "config.walk_log_steps)", "config.walk_log_steps + 1)", PSA),
        ("iterations of evaluation", "config.crf_labels", "config.crf_eval", PSA),
        ("image not normalised", "normalise(as_tensor(image)[None].to(device))", "as_tensor(image)[None].to(device) / 255", PSA),
        ("dropout acts", "memory_format=layout).eval()", "memory_format=layout)", PSA),
        ("image with one of two maps is done", ".exists() and store_path(refined", ".exists() or store_path(refined", AGAIN),
        ("CRF of the maps before the walk", "low = random_walk(pair_affinities(features), maps[None], config.walk_power, config.walk_log_steps)[0]", "low = maps", PSA),
    ],
    "evaluation/masks.py": [
        ("the worst threshold", "best = max(sweep", "best = min(sweep", f"{_METRICS}threshold_of_cams_is_the_best_by_brute_force"),
        ("the last image only", "counts.get(threshold, 0) + confusion", "confusion", EVAL),
        ("truth and mask swapped", "confusion(truth, mask, len(names))", "confusion(mask, truth, len(names))", EVAL),
    ],
    "evaluation/comparison.py": [
        ("better and worse swapped", "gain > POINT, gain < -POINT", "gain < -POINT, gain > POINT", "tests/test_crf_settings.py::test_comparison_by_class_and_image_as_another_library_counts"),
    ],
    "evaluation/expected.py": [
        ("the highest figure is the lowest", "return min(figures) - slack", "return max(figures) - slack", "tests/test_ledger.py::test_figures_name_stages_sources_and_crfs_that_exist"),
    ],
    "engine/ledger_checks.py": [
        ("lists not compared", "if noted != noting[0]:", "if False:", "tests/test_ledger.py::test_another_list_between_two_stages_is_named_at_the_later"),
        ("the CRF's kernel not compared", "if name in (iterations, *fields)}", "if name in (iterations,)}", "tests/test_ledger.py::test_another_crf_is_named_where_it_was_used"),
    ],
    "datasets/archive.py": [
        ("any content", "if hashlib.sha256(content).hexdigest() != self", "if not hashlib.sha256(content).hexdigest() and self", "tests/test_pack.py::test_a_hostile_archive_is_refused_and_leaves_nothing"),
        ("any name", "not _PART.fullmatch(name)", "False", "tests/test_pack.py::test_a_hostile_archive_is_refused_and_leaves_nothing"),
    ],
    "models/deeplab.py": [
        ("last stage not dilated", "(1, 1, 2, 4)", "(1, 1, 2, 2)", "tests/test_deeplab.py::test_the_backbone_is_torchvisions_with_dilated_last_stages"),
    ],
    "modes/recurseed/labels.py": [
        ("seeds after the CRF in both folders", "(paths[0], found.maps, ", "(paths[0], refined, ", f"{_RECURSEED}classification_alone_makes_seeds_of_its_cam"),
        ("classes of seeds by their scores", "labelled=True)", "labelled=False)", f"{_RECURSEED}a_whole_run_leaves_seeds_masks_and_figures"),
    ],
    "modes/recurseed/evaluate.py": [
        ("masks after CRF in both folders", "(found.maps, refined)", "(refined, refined)", f"{_RECURSEED}predict_makes_the_masks_of_the_evaluation"),
        ("val judged with its labels", 'labelled = config.split == "train"', "labelled = True", f"{_RECURSEED}predict_makes_the_masks_of_the_evaluation"),
    ],
    "modes/recurseed/networks.py": [
        ("the CAM where SCG is asked for", 'config.recurseed_maps == "scg")', "False)", f"{_RECURSEED}classification_alone_makes_seeds_of_its_cam"),
    ],
    "modes/recurseed/train.py": [
        ("the network saved in place of its average", "epoch), average, config", "epoch), network, config", f"{_RECURSEED}saved_weights_are_the_average_which_is_not_the_network"),
        ("own seeds an epoch late", "epoch >= config.recurseed_from", "epoch > config.recurseed_from", f"{_RECURSEED}epochs_of_the_start_are_counted_from_one"),
        ("new layers no faster", "NEW_LAYERS = 10.0", "NEW_LAYERS = 1.0", f"{_RECURSEED}rates_and_decay_of_the_groups"),
    ],
    "tools/paper_tables.py": [
        ("RecurSeed's CRF in the column of its masks", '(f"{masks}/mask", ids)', '(f"{masks}/crf", ids)', "tests/test_paper_tables.py::test_recurseeds_own_networks_stand_in_a_table_apart"),
    ],
    "settings/crf.py": [
        ("RecurSeed with PSA's CRF", '"recurseed": CrfKernel(1.0, 3.0, 67.0, 3.0, 4.0)', '"recurseed": CrfKernel()', "tests/test_crf_settings.py::test_without_a_name_each_system_has_its_own"),
    ],
    "evaluation/metrics.py": [
        ("union counts the hits twice", "[: len(hit)] - hit", "[: len(hit)]", EVAL),
        ("mean over all classes", "np.nanmean(per_class)", "np.nan_to_num(per_class).mean()", EVAL),
    ],
    "tools/coco.py": [
        ("masks that were lost believed", "mask.exists() and ", "", "tests/test_coco.py::test_what_was_lost_is_made_again_of_the_photographs_that_are_named"),
        ("photographs of another folder kept", " and photograph.samefile(item.photograph)", "", "tests/test_coco.py::test_what_was_lost_is_made_again_of_the_photographs_that_are_named"),
        ("annotations of an archive believed", " and read_bytes(annotation, 1 << 20) == content.encode()", "", "tests/test_coco.py::test_an_archive_whose_annotation_changed_is_prepared_anew"),
    ],
    "tools/pack.py": [
        ("figures of other true masks compared", ' and found.about.get("judged") == truths_of(config, ids)', "", "tests/test_pack.py::test_figures_of_other_true_masks_are_not_compared"),
    ],
    "tools/eval_masks.py": [
        ("the training list", "read_ids(arguments.voc_root, arguments.split)", 'read_ids(arguments.voc_root, "train")', EVAL),
    ],
    "main_ssdd.py": [
        ("--weights for every mode", 'TRAINED = "02"', 'TRAINED = "0123"', ALL),
        ("mode 1 left out of all", 'ALL = "0123"', 'ALL = "023"', ALL),
        ("mode 3 left out of all", 'ALL = "0123"', 'ALL = "012"', ALL),
    ],
    "settings/common.py": [
        ("another batch within a pass", '("mode 1", "mode 3"), "images a forward', 'NONE, "images a forward', f"{_ATTACK}a_pass_goes_on_with_the_batch_with_which_it_began"),
        ("seed not passed on", "seed: int = setting(0, RUN,", "seed: int = setting(0, STAGE,", PASSED_ON),
        ("width no part of the labels", "setting(1.0, RUN, (1 / 64, 1), BACKBONE,", "setting(1.0, RUN, (1 / 64, 1), SEGMENTING,", CLAIMED),
        ("CRF no part of the labels", 'CRF = (*LABEL_MAKING, "make_icd_labels", "mode 2", "mode 3")', 'CRF = ("make_icd_labels", "mode 2", "mode 3")', CLAIMED),
        ("epochs taken for where a run works", "setting(None, STAGE,", "setting(None, MACHINE,", MODE_0),
        ("folder of the data kept with the weights", 'setting("voc_root", MACHINE,', 'setting("voc_root", RUN,', MODE_0),
        ("run's name not passed on", 'setting("ssdd", RUN,', 'setting("ssdd", STAGE,', PASSED_ON),
    ],
    "settings/psa.py": [
        ("power no part of the walk", "walk_power: float = setting(8.0, RUN, POWER, WALK,", "walk_power: float = setting(8.0, RUN, POWER, NONE,", CLAIMED),
    ],
    "settings/ssdd.py": [
        ("seed_target no part of mode 2", '("ssdd1", "ssdd2"), DYNAMIC,', '("ssdd1", "ssdd2"), NONE,', CLAIMED),
        ("crf_eval no part of mode 3", "crf_eval: int = setting(10, RUN, (1, 1000), EVALUATION,", "crf_eval: int = setting(10, RUN, (1, 1000), NONE,", CLAIMED),
        ("augmentation no part of mode 1", "SWITCH, MAKE,", "SWITCH, NONE,", CLAIMED),
        ("an epoch less", "dynamic_epochs: int = setting(41,", "dynamic_epochs: int = setting(40,", PUBLISHED),
        ("weight decay of the labels", "    weight_decay: float = setting(2e-4,", "    weight_decay: float = setting(5e-4,", PUBLISHED),
    ],
    "settings/config.py": [
        ("released does not swap", "swap_maps=True,", "swap_maps=False,", RELEASED),
        ("released with the paper's bias", "seed_bias=0.1,", "seed_bias=0.4,", RELEASED),
        ("released with the first checkpoint", "static_checkpoint=11 if", "static_checkpoint=10 if", RELEASED),
        ("--epochs loses", "self if self.epochs else", "self if not epochs else", f"{_CONFIG}stage_takes_its_own_epochs_unless_told"),
    ],
    "settings/flags.py": [
        ("preset's values passed over", "own = with_recipe(preset(config.preset), config.recipe)", 'own = with_recipe(preset(config.preset), "paper")', PASSED_ON),
        ("recipe wins over flags", "    config = replace(config, **given)\n", '    config = with_recipe(replace(config, **given), given.get("recipe", "paper"))\n', f"{_CONFIG}flags_win_over_recipe_and_preset"),
    ],
    "script/pages/training.py": [
        ("epochs counted from none", "list(range(1, done + 1))", "list(range(done))", PAGES),
    ],
    "script/pages/validation.py": [
        ("masks after CRF in both columns", 'masks / "mask" / "ID.png"', 'masks / "crf" / "ID.png"', SHOWN),
    ],
    "script/pages/labels.py": [
        ("true masks in the column of the images", 'column("image", "image", image_path(root, "ID"), folder)', 'column("image", "image", mask_path(root, "ID"), folder)', SHOWN),
    ],
}  # fmt: skip

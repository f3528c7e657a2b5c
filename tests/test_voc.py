"""VOC's files: lists, photographs, annotations and masks, good and bad."""

import io

import numpy as np
import pytest
from PIL import Image

from datasets.errors import InputError
from datasets.voc import CLASSES, PALETTE, image_size, read_ids, read_image, read_mask, read_present, write_mask

LIST = "ImageSets/Segmentation/some.txt"


@pytest.fixture
def root(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def annotation(*names, head=""):
    objects = "".join(f"<object><name>{name}</name><difficult>1</difficult></object>" for name in names)
    return f"{head}<annotation><size><width>9</width></size>{objects}</annotation>"


@pytest.mark.parametrize(
    "text",
    [
        "2007_000032\n2011_003276\n",
        "2007_000032\r\n\r\n  2011_003276 \n\n",
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n"
        "/JPEGImages/2011_003276.jpg /SegmentationClassAug/2011_003276.png",
        "JPEGImages/2007_000032.jpg\n2011_003276 -1\n",
    ],
    ids=["bare", "windows", "PSA", "mixed"],
)
def test_lists_of_all_kinds_give_the_same_ids(text, root):
    (root / LIST).write_bytes(text.encode())
    assert read_ids(root, "some") == ["2007_000032", "2011_003276"]


def test_order_of_the_list_is_kept(root):
    (root / LIST).write_text("b\na\nc-1\n")
    assert read_ids(root, "some") == ["b", "a", "c-1"]


@pytest.mark.parametrize(
    "line",
    ["..", "/", "../../etc/passwd", "/etc/passwd", "a/b", "/JPEGImages/../x.jpg", ".hidden", "-x", "a.png", "a b c"],
)
def test_line_that_is_no_id_is_refused_with_its_number(line, root):
    (root / LIST).write_text(f"good\n{line}\n")
    with pytest.raises(InputError, match=r"some\.txt, line 2"):
        read_ids(root, "some")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"caf\xc3\xa9\n", b"\xff\xfe\x00"])
def test_list_without_readable_ids_is_refused(content, root):
    (root / LIST).write_bytes(content)
    with pytest.raises(InputError, match=r"some\.txt"):
        read_ids(root, "some")


def test_missing_list_is_named(root):
    with pytest.raises(InputError, match=r"ImageSets/Segmentation/absent\.txt is missing"):
        read_ids(root, "absent")


def test_root_without_voc_is_named_with_its_flag(tmp_path):
    with pytest.raises(InputError, match=r"no VOC at .*nowhere.*--voc-root"):
        read_ids(tmp_path / "nowhere", "train")


PIXELS = np.array([[[255, 0, 0], [0, 0, 255], [10, 20, 30]], [[0, 255, 0], [9, 9, 9], [200, 100, 0]]], np.uint8)


def save(root, image, **options):
    image.save(root / "JPEGImages" / "x.jpg", format=options.pop("format", "PNG"), **options)


def test_colour_picture_keeps_its_pixels(root):
    save(root, Image.fromarray(PIXELS))
    image = read_image(root, "x")
    assert image.dtype == np.uint8
    assert np.array_equal(image, PIXELS)
    assert image_size(root, "x") == (2, 3)


def test_one_pixel(root):
    save(root, Image.fromarray(PIXELS[:1, :1]))
    assert read_image(root, "x").tolist() == [[[255, 0, 0]]]


def test_grey_is_repeated_to_three_channels(root):
    save(root, Image.fromarray(PIXELS[..., 2]))
    assert np.array_equal(read_image(root, "x"), np.repeat(PIXELS[..., 2:], 3, axis=2))


def test_palette_is_looked_up(root):
    image = Image.fromarray(np.array([[15, 0], [1, 15]], np.uint8))
    image.putpalette(PALETTE.tobytes())
    save(root, image)
    assert read_image(root, "x").tolist() == [[[192, 128, 128], [0, 0, 0]], [[128, 0, 0], [192, 128, 128]]]


def test_alpha_is_dropped(root):
    alpha = np.array([[0, 128, 255], [1, 2, 3]], np.uint8)
    save(root, Image.fromarray(np.dstack([PIXELS, alpha])))
    assert np.array_equal(read_image(root, "x"), PIXELS)


def test_cmyk_is_converted(root):
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[..., 0] = 255  # full cyan: no red
    save(root, Image.fromarray(inks, mode="CMYK"), format="JPEG", quality=100)
    assert np.abs(read_image(root, "x").astype(int) - (0, 255, 255)).max() <= 4


def test_exif_rotation_is_not_applied(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(root / "JPEGImages" / "x.jpg", format="JPEG", exif=exif)
    assert read_image(root, "x").shape == (20, 30, 3)
    assert image_size(root, "x") == (20, 30)


def whole_jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, format="JPEG")
    return content.getvalue()


BAD_FILES = {"empty": b"", "text": b"no picture\n", "html": b"<html>404</html>", "head only": whole_jpeg()[:100]}
BAD_FILES |= {f"cut at {share:.0%}": whole_jpeg()[: int(share * len(whole_jpeg()))] for share in (0.3, 0.6, 0.95)}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_photograph_is_named(kind, root):
    (root / "JPEGImages" / "x.jpg").write_bytes(BAD_FILES[kind])
    with pytest.raises(InputError, match=r"JPEGImages/x\.jpg"):
        read_image(root, "x")


def test_folder_and_missing_photograph_are_named(root):
    with pytest.raises(InputError, match=r"JPEGImages/x\.jpg is missing"):
        read_image(root, "x")
    (root / "JPEGImages" / "x.jpg").mkdir()
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r"JPEGImages/x\.jpg"):
            read(root, "x")


def test_picture_that_unpacks_to_too_much_is_refused(root, monkeypatch):
    save(root, Image.new("RGB", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"x\.jpg"):
        read_image(root, "x")


def test_present_classes_and_background_are_one(root):
    (root / "Annotations" / "x.xml").write_text(annotation("person", "\n aeroplane ", "person", "tvmonitor"))
    present = read_present(root, "x")
    assert present.dtype == np.float32
    assert present.tolist() == [1, 1] + [0] * 13 + [1] + [0] * 4 + [1]


def test_parts_of_objects_are_no_objects(root):
    text = "<annotation><object><name>cat</name><part><name>head</name></part></object></annotation>"
    (root / "Annotations" / "x.xml").write_text(text)
    assert np.flatnonzero(read_present(root, "x")).tolist() == [0, CLASSES.index("cat")]


BOMB = '<!DOCTYPE a [<!ENTITY a "cat"><!ENTITY b "&a;&a;&a;">]>'
BAD_XML = {
    "unknown class": (annotation("cat", "unicorn").encode(), "'unicorn'"),
    "background as object": (annotation("background").encode(), "'background'"),
    "no object": (annotation().encode(), "names no object"),
    "object without name": (b"<annotation><object></object></annotation>", "names no object"),
    "broken": (annotation("cat").encode()[:-5], "not readable XML"),
    "empty": (b"", "not readable XML"),
    "binary": (bytes(range(1, 256)), "not readable XML"),
    "unknown encoding": (annotation("cat", head='<?xml version="1.0" encoding="no-such"?>').encode(), "readable XML"),
    "document type": (annotation("cat", head="<!DOCTYPE annotation>").encode(), "document type"),
    "entity bomb": (annotation("&b;", head=BOMB).encode(), "document type"),
    "entity bomb in UTF-16": (annotation("&a;", head=BOMB).encode("utf-16"), "not UTF-8"),
    "huge": (annotation("cat").encode() + b" " * (1 << 20), "1048576"),
    "deep": (b"<a>" * 300_000, "not readable XML"),
}


@pytest.mark.parametrize("kind", BAD_XML)
def test_bad_annotation_is_refused_by_name(kind, root):
    content, reason = BAD_XML[kind]
    (root / "Annotations" / "x.xml").write_bytes(content)
    with pytest.raises(InputError, match=rf"Annotations/x\.xml.*{reason}"):
        read_present(root, "x")


def test_missing_annotation_is_named(root):
    with pytest.raises(InputError, match=r"Annotations/x\.xml is missing"):
        read_present(root, "x")


COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
COLOURS[255] = (224, 224, 192)


def test_mask_round_trip_in_vocs_colours(tmp_path):
    mask = np.array([*range(21), 255], np.int64).reshape(2, 11)
    path = tmp_path / "new" / "mask.png"
    write_mask(path, mask)
    assert np.array_equal(read_mask(path), mask)
    assert read_mask(path).dtype == np.uint8
    shown = np.array(Image.open(path).convert("RGB"))
    for index, colour in COLOURS.items():
        assert tuple(shown[mask == index][0]) == colour, index
    assert [p.name for p in path.parent.iterdir()] == ["mask.png"]


def test_grey_mask_holds_indices(tmp_path):
    Image.fromarray(np.array([[0, 255], [20, 7]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 255], [20, 7]]


@pytest.mark.parametrize("index", [21, 128, 254])
def test_index_that_is_no_class_is_refused(index, tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 3], [index, 255]]))
    with pytest.raises(InputError, match=rf"m\.png holds the index {index}"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "1"])
def test_mask_in_colours_or_deep_grey_is_refused(mode, tmp_path):
    Image.new(mode, (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png is a"):
        read_mask(tmp_path / "m.png")


def test_damaged_or_missing_mask_is_named(tmp_path):
    path = tmp_path / "m.png"
    with pytest.raises(InputError, match=r"m\.png is missing"):
        read_mask(path)
    write_mask(path, np.random.default_rng(0).integers(0, 21, (60, 60)))
    whole = path.read_bytes()
    for length in (0, 20, len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m\.png"):
            read_mask(path)

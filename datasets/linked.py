"""The images of a VOC folder under lists of one's own."""

from pathlib import Path

from datasets.errors import InputError
from datasets.files import atomic_write, refuse_overwrite
from datasets.voc import CLASSES_FILE, list_path


def link_with_lists(source: Path, root: Path, lists: dict[str, list[str]]) -> None:
    """Fill `root` with links to the photographs, annotations and masks of `source`, its classes, and other lists.

    Args:
        lists: image ids by the name of the split. What is there already must be the same, but for the links.

    Raises:
        InputError: `root` is `source`, or has other lists or classes.
    """
    refuse_overwrite([root], [source])
    contents = {list_path(root, split): "".join(f"{i}\n" for i in ids) for split, ids in lists.items()}
    for name in ("demo.json", CLASSES_FILE):
        if (source / name).exists():
            contents[root / name] = (source / name).read_text(encoding="utf-8")
    for path, content in contents.items():
        if path.exists() and path.read_text(encoding="utf-8") != content:
            raise InputError(f"{path} is of other images than {source} now has: give another --out")
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        # Of an earlier start, which may have been given another data set: whether it holds the same, its content tells.
        if (root / folder).is_symlink():
            (root / folder).unlink()
        root.mkdir(parents=True, exist_ok=True)
        (root / folder).symlink_to((source / folder).resolve())
    for path, content in contents.items():
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_text(content, encoding="utf-8")

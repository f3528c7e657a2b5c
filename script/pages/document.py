"""A page of HTML: script/page.html filled in with style, script and data."""

import json
import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import quote

from datasets.files import read_bytes
from datasets.voc import PALETTE, class_names
from settings.config import Config

HERE = Path(__file__).parent.parent
SCRIPTS = ("base", "rows", "integrate", "training", "charts", "index", "ledger", "start")  # in this order
# Where a mask is wrong: colours that colour-blind people tell apart (Okabe and Ito).
WRONG = {
    "object missed": (0, 114, 178),
    "object where there is none": (230, 159, 0),
    "wrong class": (204, 121, 167),
}


def write_page(folder: Path, name: str, titles: dict[str, str], config: Config, data: dict) -> None:
    """One page; `data` becomes JSON in which no tag can end or begin.

    Args:
        titles: of all pages, by name.
    """
    classes = [{"name": c, "colour": "#" + bytes(PALETTE[i]).hex()} for i, c in enumerate(class_names(config.voc_root))]
    data = {"classes": classes, "wrong": {k: "#" + bytes(v).hex() for k, v in WRONG.items()}} | data
    # A browser's JSON knows no NaN, which the mIoU of no known pixel is.
    data = json.loads(json.dumps(data), parse_constant=lambda _: None)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    links = "".join(
        f'<a href="{page}.html"{" aria-current=page" if page == name else ""}>{title}</a>'
        for page, title in titles.items()
    )
    parts = {
        "title": escape(f"{titles[name]} · {config.modelid}"),
        "heading": escape(titles[name]),
        "links": links,
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((HERE / "pages" / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS),
        "data": text,
    }
    pieces = (HERE / "page.html").read_text(encoding="utf-8").split("@")
    page = "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))
    replace_file(folder / f"{name}.html", lambda path: path.write_text(page, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write and rename, so that a browser never sees a half file; not forced to disk, as it can be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, folder: Path) -> str:
    """A relative URL from a page in `folder`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def column(key: str, title: str, path: Path, folder: Path) -> dict:
    """A column of pictures, one an image; `path` holds ID where an image's id belongs."""
    before, after = path.name.split("ID")
    return {"key": key, "title": title, "before": link(path.parent, folder) + "/" + before, "after": after}


def read_json(path: Path) -> dict:
    """What lies at `path`, or nothing."""
    try:
        content = json.loads(read_bytes(path, 1 << 24))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

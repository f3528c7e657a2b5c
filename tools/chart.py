"""Grouped bars with error bars, drawn with Pillow, which is here anyway."""

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8c8c8c")
LEFT, TOP, HEIGHT, BOTTOM, BAR, GAP = 60, 60, 300, 90, 12, 14


def bars(
    title: str, groups: list[str], series: dict[str, list[tuple[float, float] | None]], top: float = 1.0
) -> Image.Image:
    """One group of bars a label, one colour a series.

    Args:
        groups: labels below the groups.
        series: {name: (value, spread) or None for each group}, values in 0…top; the spread is drawn as ± a line.
        top: value at the upper end of the axis.
    """
    step = len(series) * BAR + GAP
    # Labels stand slanted below, names in a row above; whichever is wider decides.
    width = LEFT + max(len(groups) * step, 150 * len(series), 8 * len(title)) + GAP
    picture = Image.new("RGB", (width, TOP + HEIGHT + BOTTOM), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - min(value, top) / top)

    draw.text((LEFT, 6), title, "black", font)
    for n, name in enumerate(series):
        draw.rectangle((LEFT + 150 * n, 32, LEFT + 150 * n + 10, 42), COLOURS[n % len(COLOURS)])
        draw.text((LEFT + 150 * n + 16, 29), name, "black", font)
    slant = any(len(label) * 8 > step for label in groups)
    for tick in range(0, 101, 20):
        value = top * tick / 100
        draw.line((LEFT, y(value), width - GAP, y(value)), "#dddddd")
        draw.text((LEFT - 8, y(value)), f"{100 * value:.0f}", "black", font, anchor="rm")
    for g, label in enumerate(groups):
        for n, values in enumerate(series.values()):
            if values[g] is None:
                continue
            value, spread = values[g]
            x = LEFT + GAP // 2 + g * step + n * BAR
            draw.rectangle((x, y(value), x + BAR - 2, y(0)), COLOURS[n % len(COLOURS)])
            if spread:
                middle = x + BAR // 2 - 1
                draw.line((middle, y(value - spread), middle, y(value + spread)), "black", 1)
                for end in (value - spread, value + spread):
                    draw.line((middle - 3, y(end), middle + 3, y(end)), "black", 1)
        place = (LEFT + g * step + step // 2, TOP + HEIGHT + 6)
        if not slant:
            draw.text(place, label, "black", font, anchor="ma")
        else:
            box = font.getbbox(label)
            slanted = Image.new("L", (int(box[2]) + 2, int(box[3]) + 4))
            ImageDraw.Draw(slanted).text((0, 0), label, 255, font)
            slanted = slanted.rotate(45, expand=True)
            picture.paste("black", (place[0] - slanted.width + 8, place[1]), slanted)
    return picture

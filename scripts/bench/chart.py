"""The figures of scripts/bench.sh as bars, in SVG: docs/bench.svg."""

import html

WIDTH, LABEL, BARS, TEXT = 960, 380, 440, 140
BAR, GAP, TOP = 12, 14, 48
# Apart from each other for those who do not tell red from green.
COLOURS = {"bucketvol": "#0b6e99", "rclone": "#e69f00", "s3fs": "#999999", "mount-s3": "#cc79a7"}


def chart(programs, rows):
    """`rows`: words, unit, and each program's figure with how fast that is; the fastest of a row fills it."""
    height = TOP + sum(len(figures) * BAR + GAP for _, _, figures in rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif"'
        ' font-size="11" role="img" aria-label="How fast each program is, relative to the fastest">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<text x="8" y="18" font-size="13">How fast, relative to the fastest of each row</text>',
    ]
    for number, program in enumerate(programs):
        x = LABEL + 110 * number
        out.append(f'<rect x="{x}" y="26" width="10" height="10" fill="{COLOURS.get(program, "black")}"/>')
        out.append(f'<text x="{x + 14}" y="35">{html.escape(program)}</text>')
    y = TOP
    for words, unit, figures in rows:
        middle = y + len(figures) * BAR / 2 + 4
        out.append(f'<text x="8" y="{middle:.0f}">{html.escape(words.replace("`", ""))}</text>')
        fastest = max((speed for _, _, speed in figures if speed), default=1)
        for program, shown, speed in figures:
            length = max(1, round(BARS * speed / fastest)) if speed else 0
            colour = COLOURS.get(program, "black")
            out.append(f'<rect x="{LABEL}" y="{y}" width="{length}" height="{BAR - 2}" fill="{colour}"/>')
            said = f"{shown} {unit}" if speed else shown
            out.append(f'<text x="{LABEL + length + 4}" y="{y + BAR - 3}">{html.escape(said)}</text>')
            y += BAR
        y += GAP
    return "\n".join([*out, "</svg>", ""])

"""A report of problems, a line each, to compare."""


def flat(report: str) -> list[str]:
    """The heading, then of each problem: place: field: what is wrong; help."""
    lines = []
    for block in report.split("\n\n"):
        what, *rest = block.split("\n")
        if rest and rest[0].startswith("  --> "):
            helps = [f"; {line.partition('= help: ')[2]}" for line in rest if "= help: " in line]
            what = f"{rest[0].removeprefix('  --> ')}: {what.removeprefix('error: ')}{''.join(helps)}"
        lines.append(what)
    return lines

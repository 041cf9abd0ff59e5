"""The page's sections about what is measured beside recall."""

from __future__ import annotations

from worldsim.evaluation.report.charts import Line, line_of, plot_lines
from worldsim.evaluation.report.elements import (
    Report,
    cell,
    number,
    paragraph,
    plots,
    section,
    table,
    text,
)

MIB = 2**20
SOURCES = {
    "state": "the state",
    "state_of_another": "the state of another episode",
    "present_frame": "the present frame alone",
    "oracle": "oracle",
}


def sections(report: Report) -> list[str]:
    """Return the sections of the parts that were measured."""
    shown = [controllability, drift, fidelity, idle, continuation, probe, cost]
    return [show(report) for show in shown if report.get(show.__name__, {}).get("worlds")]


def controllability(report: Report) -> str:
    """Plot and tabulate the opposite-action test at several frames."""
    part = report["controllability"]
    rows, lines = [], []
    for name, found in part["worlds"].items():
        axes = dict.fromkeys(axis for mark in found["marks"].values() for axis in mark)
        for axis in axes:
            marks = {mark: tests[axis]["both_right"] for mark, tests in found["marks"].items()}
            ceiling = part["calibration"].get(axis, {}).get("both_right")
            rows.append([text(f"{name}, {axis}"), *map(cell, marks.values()), number(ceiling)])
            x, y = [float(mark) for mark in marks], [estimate["mean"] for estimate in marks.values()]
            lines.append(Line(name=f"{name}, {axis}", x=x, y=y))
    if not rows:
        return ""
    marks = next(iter(part["worlds"].values()))["marks"]
    heading = ("both buttons right", *(f"frame {mark}" for mark in marks), "real game, both right")
    return section(
        "Controllability",
        paragraph(
            "From the same state each of two opposite buttons is held; both must move the picture the right "
            "way. Frames are those of a long dream under random buttons. The last column is what the "
            "estimator makes of the real game."
        ),
        table(heading, rows),
        plots(plot_lines(lines, ("frame of the dream", "both buttons right"))),
    )


def drift(report: Report) -> str:
    """Tabulate how far long dreams are off the real game, and whether they move."""
    rows, lines = [], []
    for name, found in report["drift"]["worlds"].items():
        for statistic in ("brightness", "contrast", "sharpness", "motion_energy"):
            values = found[statistic]
            rows.append(
                [
                    text(f"{name}: {statistic.replace('_', ' ')}"),
                    cell(values["worst_ratio"]),
                    text(values["worst_segment"] + 1),
                    cell(values["last_minus_first"]),
                    text("" if statistic != "motion_energy" else "yes" if found["moves"] else "no"),
                ]
            )
        lines.append(Line(name=name, x=found["segment_ends"], y=found["motion_energy"]["ratio"]))
    return section(
        "Drift",
        paragraph(
            "Long dreams under random buttons, in segments: statistics of their pictures over those of the "
            "real game. The segment that is furthest off counts. A dream whose motion falls below half of "
            "the real game's stands still."
        ),
        table(("dream over real game", "furthest off", "segment", "last - first segment", "moves"), rows),
        plots(plot_lines(lines, ("frame of the dream", "motion over the real game's"))),
    )


def fidelity(report: Report) -> str:
    """Plot and tabulate FID and KID by segments of dreams, with what real frames themselves have."""
    part = report["fidelity"]
    real, episodes = part["real"], part["episodes"]
    shown: dict[str, Report] = {"real frames of other episodes": real}
    for name, found in part["worlds"].items():
        shown |= {f"{name}: dream": found["dream"], f"{name}: codec": found["codec"]}
    contents, figures = [], []
    for distance in ("fid", "kid"):
        rows, lines = [], []
        for name, segments in shown.items():
            values = {segment: both[distance]["value"] for segment, both in segments.items()}
            over = list(segments.values())[-1][distance]["over_floor"]
            above = "-" if segments is real else cell(over, 3)
            rows.append([text(name), *(cell(value, 3) for value in values.values()), above])
            places = {segment.split("-")[1]: value for segment, value in values.items()}
            lines.append(line_of(name, places, is_reference=segments is real))
        heading = (distance.upper(), *(f"frames {segment}" for segment in real), "last, above the floor")
        contents.append(table(heading, rows))
        figures.append(plot_lines(lines, ("last frame of the segment", distance.upper()), is_log=True))
    return section(
        "Fidelity",
        paragraph(
            "Dreams under the recorded actions: their frames against the real ones of other episodes, as "
            f"sets of features; {len(episodes['names'])} episodes, {episodes['frames_a_side']} frames a "
            "side. FID of so few frames is too large, by about as much in every row: what counts is how far "
            "it is above real frames of other episodes. The numbers are of our own feature network "
            f"({episodes['feature_network']}) and cannot be compared with those of Inception."
        ),
        *contents,
        plots(*figures),
    )


def idle(report: Report) -> str:
    """Tabulate what becomes of a picture when nothing is pressed."""
    rows = [
        [
            text(name),
            text(f"{found['num_starts']} x {found['num_frames']}"),
            *(
                number(found[statistic]["max_deviation"])
                for statistic in ("brightness", "contrast", "sharpness")
            ),
            number(found["psnr_db_to_start"][-1]),
        ]
        for name, found in report["idle"]["worlds"].items()
    ]
    heading = (
        "nothing pressed",
        "starts x frames",
        "brightness off by",
        "contrast",
        "sharpness",
        "PSNR to the start",
    )
    return section("Idle hold", table(heading, rows))


def continuation(report: Report) -> str:
    """Tabulate parts that the context shows and parts that it does not."""
    rows = []
    for name, gaps in report["continuation"]["worlds"].items():
        for gap, found in gaps.items():
            for method in ("dream", "copy_last", "codec"):
                rows.append(
                    [
                        text(f"{name}, {gap} frames: {method.replace('_', ' ')}"),
                        cell(found[method]["seen"]),
                        cell(found[method]["unseen"]),
                        number(100 * found["seen_share"], 0) + " %",
                    ]
                )
    return section(
        "Continuation",
        paragraph(
            "After the context the dream goes where the real player went. What the context shows can be "
            "remembered; what it does not show can only be guessed."
        ),
        table(("PSNR, dB", "parts seen in the context", "parts not seen", "seen"), rows),
    )


def probe(report: Report) -> str:
    """Tabulate what can be read out of the states."""
    worlds = report["probe"]["worlds"]
    targets = list(dict.fromkeys(target for found in worlds.values() for target in found["targets"]))
    rows = [
        [text(f"{name}: {words}"), *(cell(found["targets"].get(t, {}).get(source)) for t in targets)]
        for name, found in worlds.items()
        for source, words in SOURCES.items()
    ]
    names = ["position" if target == "position" else f"{target} frames ago" for target in targets]
    return section(
        "State probe",
        paragraph(
            "Share of the variance that a ridge regression explains on episodes that it was not fitted to; a "
            "constant has 0. Read are where the player is since the clip began, and the coarse picture of "
            "some frames ago. The oracle reads the position from all that was pressed, a picture from itself."
        ),
        table(("read from", *names), rows),
    )


def cost(report: Report) -> str:
    """Plot and tabulate what a step costs at some frames."""
    worlds = report["cost"]["worlds"]
    frames = sorted({int(frame) for found in worlds.values() for frame in found["frames"]})
    rows, time_lines, byte_lines = [], [], []
    for name, found in worlds.items():
        at = found["frames"]
        shown = [at.get(str(frame)) for frame in frames]
        rows.append([text(f"{name}: ms"), *(number(a and a["step_ms"]["p50"], 1) for a in shown)])
        rows.append([text(f"{name}: state, MiB"), *(number(a and a["state_bytes"] / MIB) for a in shown)])
        rows.append(
            [text(f"{name}: process, MiB"), *(number(a and a["process_bytes"] / MIB, 0) for a in shown)]
        )
        x = [float(frame) for frame in at]
        time_lines.append(Line(name=name, x=x, y=[a["step_ms"]["p50"] for a in at.values()]))
        byte_lines.append(Line(name=name, x=x, y=[a["state_bytes"] / MIB for a in at.values()]))
    ratios = [
        [text(name), text(f"{found['late_frame']:,}"), cell(found["late_over_early_ms"], 3)]
        + [number(found["late_over_early_bytes"], 3)]
        for name, found in worlds.items()
    ]
    return section(
        "Cost of a frame",
        paragraph(
            "One dream. Between the frames of the table the memory is written as in play, but no picture is "
            "drawn. For the ratio a late state and the one of frame 100 are stepped in turn."
        ),
        table(("at frame", *(f"{frame:,}" for frame in frames)), rows),
        table(("over frame 100", "late frame", "ms", "bytes"), ratios),
        plots(
            plot_lines(time_lines, ("frame", "milliseconds a step"), is_log=True),
            plot_lines(byte_lines, ("frame", "MiB remembered"), is_log=True),
        ),
    )

"""The rows of `benchmarks.networks` as a line, as a table in Markdown, and as a chart."""

from pathlib import Path

from benchmarks.records import Records, Row, table

LABELS = {
    "ours": "flaxcnn",
    "stock": "stock Flax",
    "keras": "Keras on JAX",
    "torch": "torch",
    "torch_compile": "torch.compile",
}
COLORS = {
    "stock": "#9ecae1",
    "keras": "#d62728",
    "torch": "#fdae6b",
    "torch_compile": "#e6550d",
}
COLUMNS = (
    "network",
    "system",
    "images/s",
    "ms a step",
    "speed of flaxcnn",
    "memory, MiB",
    "first result, s",
    "warm, s",
    "Gmac/s",
    "of matrix rate",
    "of bandwidth",
    "",
)
LEGEND = """`speed of flaxcnn` is how many times as fast flaxcnn was as the system, in the same turns; in brackets
the quartiles over the turns. **Bold** is what a peer does better. `first result` is without and `warm` with what an
earlier process left in the cache of compiled programs.
"""


def line(row: Row) -> str:
    """Returns what is printed of a row as soon as it is measured."""
    text = f"  {LABELS[row['system']]:<21}"
    if reason := row.get("absent") or row.get("failed"):
        return text + reason
    low, median, high = row["images_per_second"]
    text += f"{median:>10,.1f} images/s ({low:,.1f} to {high:,.1f})"
    if ratio := row.get("speed_of_ours"):
        text += "   flaxcnn {1:.2f} times as fast ({0:.2f} to {2:.2f})".format(*ratio)
    return f"{text}   {row['note']}" if "note" in row else text


def is_better(row: Row, ours: Row | None, name: str) -> bool:
    """Returns whether a peer does better than ours in a field: is faster in the median turn, or takes less."""
    if row["system"] == "ours":
        return False
    if name == "images_per_second":
        return row.get("speed_of_ours", (0, 1, 0))[1] < 1
    return bool(ours) and None not in (row.get(name), ours.get(name)) and row[name] < ours[name]


def cells(row: Row, ours: Row | None) -> list[str]:
    """Returns a line of the table; `ours` is the row of ours for the same task, if there is one."""
    start = [f"{row['network']}, {row['batch']}", LABELS[row["system"]]]
    if reason := row.get("absent") or row.get("failed"):
        return [*start, *[""] * (len(COLUMNS) - 3), reason]

    def marked(text: str, name: str) -> str:
        return f"**{text}**" if is_better(row, ours, name) else text

    low, median, high = row["images_per_second"]
    digits = 1 if median < 100 else 0
    ratio, peak, bandwidth = row.get("speed_of_ours"), row["peak_bytes"], row.get("share_of_bandwidth")
    is_peer = row["system"] != "ours" and ratio
    return [
        *start,
        marked(f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})", "images_per_second"),
        f"{row['milliseconds']:,.{1 if row['milliseconds'] >= 10 else 3}f}",
        marked("{1:.2f} ({0:.2f} to {2:.2f})".format(*ratio), "images_per_second") if is_peer else "",
        marked(f"{peak / 2**20:,.0f}", "peak_bytes") if peak else "",
        marked(f"{row['first_seconds_cold']:.1f}", "first_seconds_cold"),
        marked(f"{row['first_seconds_warm']:.1f}", "first_seconds_warm"),
        f"{row['macs_per_second'] / 1e9:,.1f}",
        f"{row['share_of_matrix_rate']:.0%}",
        f"{bandwidth:.0%}" if bandwidth else "",
        row.get("note", ""),
    ]


def sections(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns the rows by what they have in common: the mode, the kind of batch, the dtype."""
    found: dict[str, list[Row]] = {}
    networks, systems = list(dict.fromkeys(row["network"] for row in rows)), list(LABELS)
    # Rows that were merged in later stand beside those of their network.
    for row in sorted(rows, key=lambda row: (networks.index(row["network"]), systems.index(row["system"]))):
        kind = "Training" if row["mode"] == "training" else "Inference" + (", one image" * (row["batch"] == 1))
        found.setdefault(f"{kind}, {row['dtype']}", []).append(row)
    return dict(sorted(found.items(), reverse=True))


def markdown(rows: list[Row]) -> str:
    """Returns a table for each section."""
    ours = {_task(row): row for row in rows if row["system"] == "ours"}
    parts = [LEGEND]
    for title, members in sections(rows).items():
        parts.append(f"\n## {title}\n\n")
        parts.append(table(COLUMNS, [cells(row, ours.get(_task(row))) for row in members]))
    return "".join(parts)


def draw(rows: list[Row], path: Path) -> None:
    """Writes a chart: for each section and network, the speed of each peer as a share of ours."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the same rows give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "networks"})
    panels = {
        title: found
        for title, members in sections(rows).items()
        if (found := [row for row in members if row["system"] != "ours" and "speed_of_ours" in row])
    }
    if not panels:
        return
    names = list(dict.fromkeys(row["network"] for found in panels.values() for row in found))
    present = {row["system"] for found in panels.values() for row in found}
    systems = [system for system in COLORS if system in present]
    figure = Figure(figsize=(3.2 * len(panels) + 1.4, 0.9 + 0.16 * len(names) * (len(systems) + 1)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for row in found:
            # The quartiles of ours over the peer are those of the peer over ours, in the other order.
            high, median, low = (1 / ratio for ratio in row["speed_of_ours"])
            place = names.index(row["network"]) + (systems.index(row["system"]) + 1) / (len(systems) + 1) - 0.5
            axis.barh(place, median, 0.9 / (len(systems) + 1), color=COLORS[row["system"]])
            axis.plot([low, high], [place, place], color="black", linewidth=0.8)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xlim(left=0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("speed of the peer, flaxcnn = 1", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    bars = [matplotlib.patches.Patch(color=COLORS[system], label=LABELS[system]) for system in systems]
    figure.legend(handles=bars, loc="outside lower center", ncols=len(bars), fontsize=8, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, metadata={"Date": None})


def write(records: Records, output: Path) -> None:
    """Writes everything but the JSON."""
    records.write_csv()
    records.write_markdown(markdown(records.rows))
    draw(records.rows, output.with_suffix(".svg"))


def _task(row: Row) -> tuple:
    return tuple(row[name] for name in ("network", "mode", "batch", "dtype"))

"""Terminal output of an analysis, in the order of the original tool."""

from collections.abc import Sequence

from rich.console import Console

from subspacelab.core.errors import printable
from subspacelab.norms.comparison import comparison_rows
from subspacelab.norms.measured import Embedding, Norm, by_group
from subspacelab.norms.results import Analysis, Massive
from subspacelab.plotting.terminal import print_table, show_number

COUNTED = {
    **{"token": "vocabulary", "position": "positions", "token type": "types", "patch": "features"},
    **{"class token": "tokens", "register": "registers", "expert router": "experts", "other": "vectors"},
}


def print_analysis(analysis: Analysis, console: Console | None = None) -> None:
    """Prints the family, each embedding, the number of norm layers, each of them, and every doubt."""
    console = console or Console()
    label = f"{analysis.family} ({analysis.model_type})" if analysis.family else "unknown"
    commit = f" at {analysis.revision[:12]}" if analysis.revision else ""
    _say(console, f"{analysis.model_name}{commit}")
    _say(console, f"family: {label}, by {analysis.found_by}; device: {analysis.device}")
    _say(console, f"Embedding layers: {len(analysis.embedding_layers)}", above=True)
    for group in by_group(analysis.embedding_layers):
        _print_embedding(group[0], console)
        if len(group) > 1:
            means = [float(e.vectors.norms.mean()) for e in group]
            _say(console, f"  {len(group) - 1} more like it, norms mean {min(means):.6f} to {max(means):.6f}")
    _say(console, f"Norm layers: {len(analysis.reported)} of {len(analysis.norm_layers)}", above=True)
    for norm in analysis.reported:
        _print_norm(norm, console)
    _say(console, f"read {analysis.bytes_read / 1e6:,.1f} MB of tensors", above=True)
    for warning in analysis.warnings:
        _say(console, f"warning: {warning}")


def print_comparison(analyses: Sequence[Analysis], console: Console | None = None) -> None:
    """Prints a column per model and a line per kind of embedding and of norm layer."""
    rows = [[printable(cell) for cell in row] for row in comparison_rows(analyses)]
    print_table("Comparison", ["", *(printable(a.name) for a in analyses)], rows, console=console or Console())


def print_massive(found: Massive, console: Console | None = None) -> None:
    """Prints a line per layer, the scales of the followed dimensions, and the summary."""
    console = console or Console()
    columns = ["layer", "median", "typical_largest", "largest", "ratio", "dim", "position", "token", "massive"]
    rows = [
        [show_number(v, 4) if isinstance(v, float) else str(v) for v in row] for row in found.layers[columns].values
    ]
    print_table("Residual stream", [c.replace("_", " ") for c in columns], map(_printable, rows), console=console)
    in_blocks = found.scales[found.scales["block"].notna()]
    means = in_blocks.groupby(["norm", "kind", "dim"], sort=False)[["scale", "typical", "rank"]].mean().reset_index()
    rows = [[show_number(v) if isinstance(v, float) else str(v) for v in row] for row in means.values]
    print_table("Norm scales, mean over the blocks", list(means.columns), map(_printable, rows), console=console)
    for note in found.metrics["notes"]:
        _say(console, f"note: {note}")
    _say(console, found.summary)


def _printable(row: Sequence[str]) -> list[str]:
    return [printable(cell) for cell in row]


def _print_embedding(embedding: Embedding, console: Console) -> None:
    entry, layer = embedding.to_json(), embedding.layer
    _say(console, f"{layer.name} ({layer.kind})", above=True)
    _say(console, f"  shape        {' x '.join(map(str, layer.shape))}")
    _say(console, f"  {COUNTED[layer.kind]:<12} {layer.num_vectors:,}")
    _say(console, f"  width        {layer.width:,}")
    _say(console, "  norms        " + _listed(entry, "norm", ("mean", "std", "min", "max")))
    _say(console, "  weights      " + _listed(entry, "weight", ("mean", "abs_mean", "std")))
    if entry.get("padding_rows"):
        padding = f"{entry['padding_rows']:,} rows without a token"
        _say(console, f"  padding      {padding}: " + _listed(entry["padding"], "norm", ("mean", "max")))
    for which in ("smallest", "largest"):
        found = "  ".join(_vector(v) for v in entry[which][:5])
        _say(console, f"  {which:<12} {found}")


def _print_norm(norm: Norm, console: Console) -> None:
    s = norm.scale
    scale = f", scale 1 + w (mean of w {norm.stored_mean:.5f})" if norm.layer.zero_centred else ""
    _say(console, f"{norm.layer.name.layer}: {norm.layer.type} [{', '.join(map(str, norm.shape))}]{scale}", above=True)
    numbers = {"mean": s.mean, "abs mean": s.abs_mean, "std": s.std, "min": s.min, "max": s.max}
    listed = ", ".join(f"{key} {value:.5f}" for key, value in numbers.items())
    _say(console, f"  {listed}, {s.count} parameters")


def _listed(entry: dict[str, float], prefix: str, keys: Sequence[str]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {entry[f'{prefix}_{key}']:.6f}" for key in keys)


def _vector(vector: dict[str, object]) -> str:
    token = f" {vector['token']!r}" if vector.get("token") is not None else ""
    return f"{vector['id']}{token} {vector['norm']:.4f}"


def _say(console: Console, text: str, *, above: bool = False) -> None:
    """Prints a line, optionally with an empty line before it."""
    console.print("\n" * above + printable(text), markup=False, highlight=False, soft_wrap=True)

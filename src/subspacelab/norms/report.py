"""What an analysis tells the person at the terminal, in the order of the original tool."""

from collections.abc import Sequence

from rich.console import Console

from subspacelab.norms.results import Analysis, Embedding, Norm
from subspacelab.reports.tables import print_table

COUNTED = {"token": "vocabulary", "patch": "features", "position": "positions", "class token": "tokens"}


def print_analysis(analysis: Analysis, console: Console | None = None) -> None:
    """Prints family, each embedding, how many norm layers, each of them, and every doubt."""
    console = console or Console()
    family = analysis.survey.detected.family
    label = f"{family.label} ({analysis.survey.detected.model_type})" if family else "unknown"
    commit = f" at {analysis.revision[:12]}" if analysis.revision else ""
    _say(console, f"{analysis.model_name}{commit}")
    _say(console, f"family: {label}, by {analysis.survey.detected.found_by}; device: {analysis.device}")
    _say(console, f"\nEmbedding layers: {len(analysis.embeddings)}")
    for embedding in analysis.embeddings:
        _print_embedding(embedding, console)
    _say(console, f"\nNorm layers: {len(analysis.reported)} of {len(analysis.norms)}")
    for norm in analysis.reported:
        _print_norm(norm, console)
    _say(console, f"\nread {analysis.bytes_read / 1e6:,.1f} MB of tensors")
    for warning in analysis.warnings:
        _say(console, f"warning: {warning}")


def print_comparison(analyses: Sequence[Analysis], console: Console | None = None) -> None:
    """Prints a line per model: its counts, the norms of its first embedding, the mean scale of all its norms."""
    rows = []
    for analysis in analyses:
        first = analysis.embeddings[0].to_json() if analysis.embeddings else None
        norms = [f"{first[key]:.4f}" for key in ("norm_mean", "norm_std")] if first else ["-", "-"]
        scales = [norm.scale.abs_mean for norm in analysis.norms]
        scale = f"{sum(scales) / len(scales):.4f}" if scales else "-"
        counts = [str(len(analysis.embeddings)), str(len(analysis.norms))]
        rows.append([analysis.name, analysis.survey.detected.model_type, *counts, *norms, scale])
    columns = ["model", "family", "emb", "norms", "norm mean", "norm std", "|scale|"]
    print_table("Comparison", columns, rows, console=console or Console())


def _print_embedding(embedding: Embedding, console: Console) -> None:
    entry, layer = embedding.to_json(), embedding.layer
    _say(console, f"\n{layer.name} ({layer.kind})")
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
    _say(console, f"\n{norm.layer.name.layer}: {norm.layer.type} [{', '.join(map(str, norm.shape))}]")
    numbers = {"mean": s.mean, "abs mean": s.abs_mean, "std": s.std, "min": s.min, "max": s.max}
    listed = ", ".join(f"{key} {value:.5f}" for key, value in numbers.items())
    _say(console, f"  {listed}, {s.count} parameters")


def _listed(entry: dict[str, float], prefix: str, keys: Sequence[str]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {entry[f'{prefix}_{key}']:.6f}" for key in keys)


def _vector(vector: dict[str, object]) -> str:
    token = f" {vector['token']!r}" if vector.get("token") is not None else ""
    return f"{vector['id']}{token} {vector['norm']:.4f}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

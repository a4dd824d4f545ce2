"""The only place that opens weight files: index, lazy reader, writer, canonical names, references."""

from subspacelab.checkpoints.adapters import Adapter, LoraLayer, open_adapter
from subspacelab.checkpoints.live import Weights, open_checkpoint, open_reference, source_of
from subspacelab.checkpoints.reader import Checkpoint, config_errors, open_source, read_config
from subspacelab.checkpoints.references import Source, resolve_reference, write_reference
from subspacelab.checkpoints.tensors import (
    TensorInfo,
    canonical_name,
    holds_expert_biases,
    matrix_shape,
    num_experts,
    tensor_digest,
)
from subspacelab.checkpoints.validation import require_finite
from subspacelab.checkpoints.writer import (
    CheckpointWriter,
    checkpoint_writer,
    read_tensors,
    write_checkpoint,
    write_tensors,
)

__all__ = [
    "Adapter",
    "Checkpoint",
    "CheckpointWriter",
    "LoraLayer",
    "Source",
    "TensorInfo",
    "Weights",
    "canonical_name",
    "checkpoint_writer",
    "config_errors",
    "holds_expert_biases",
    "matrix_shape",
    "num_experts",
    "open_adapter",
    "open_checkpoint",
    "open_reference",
    "open_source",
    "read_config",
    "read_tensors",
    "require_finite",
    "resolve_reference",
    "source_of",
    "tensor_digest",
    "write_checkpoint",
    "write_reference",
    "write_tensors",
]

"""The formats of exports: title, stage, and source of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError

Format: TypeAlias = Literal[
    "onnx", "int8", "ort", "ort-int8", "openvino-fp32", "openvino-int8", "executorch-fp32", "executorch-int8",
    "litert-fp32", "litert-int8",
]  # fmt: skip
"""``format`` of an export."""


@dataclass(frozen=True)
class Making:
    """How a format is made."""

    title: str
    stage: str
    values: Mapping[str, Any] = field(default_factory=dict)
    """Recipe of the stage."""
    of: Format | None = None
    """Format it is made from; None for the model itself."""
    calibrated: bool = False
    """Whether it needs token rows."""


FORMATS: dict[Format, Making] = {
    "onnx": Making("ONNX", "deploy.onnx_export"),
    "int8": Making("ONNX int8", "deploy.quantize", of="onnx"),
    "ort": Making("ORT mobile", "deploy.ort_mobile", of="onnx"),
    "ort-int8": Making("ORT mobile int8", "deploy.ort_mobile", of="int8"),
    "openvino-fp32": Making("OpenVINO", "deploy.openvino_export", {"precision": "fp32"}),
    "openvino-int8": Making("OpenVINO int8", "deploy.openvino_export", {"precision": "int8"}, calibrated=True),
    "executorch-fp32": Making("ExecuTorch", "deploy.executorch_export", {"precision": "fp32"}),
    "executorch-int8": Making("ExecuTorch int8", "deploy.executorch_export", {"precision": "int8"}),
    "litert-fp32": Making("LiteRT", "deploy.litert_export", {"precision": "fp32"}),
    "litert-int8": Making("LiteRT int8", "deploy.litert_export", {"precision": "int8"}),
}
"""Each format after its source."""

TITLES: dict[str, str] = {"pytorch": "PyTorch", **{name: making.title for name, making in FORMATS.items()}}
"""Format to its title, with eager PyTorch."""


def with_sources(wanted: Sequence[Format]) -> list[Format]:
    """These formats and their sources, in an order in which they can be made."""
    found = set(wanted)
    for name in reversed(FORMATS):
        if name in found and (source := FORMATS[name].of) is not None:
            found.add(source)
    return [name for name in FORMATS if name in found]


def check_toolchains(wanted: Sequence[Format], where: str) -> None:
    """
    Raises:
        StageError: the toolchain of a format is not installed; says what to install.
    """
    for name in with_sources(wanted):
        try:
            registry.find(FORMATS[name].stage).toolchain()
        except StageError as error:
            raise StageError(f"{where} has {name}: {error}") from None

"""The formats of exports: the stage that makes each, from what, and its title."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError

Format: TypeAlias = Literal[
    "onnx", "int8", "ort", "ort-int8", "openvino-fp32", "openvino-int8", "executorch-fp32", "executorch-int8",
    "litert-fp32", "litert-int8",
]  # fmt: skip
"""As exports call themselves."""


@dataclass(frozen=True)
class Making:
    """How a format is made."""

    title: str
    stage: str
    values: Mapping[str, Any] = field(default_factory=dict)
    """Of the stage's recipe."""
    of: Format | None = None
    """The export that it is made from; None for the model itself."""
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
"""Each after the format that it is made from."""

TITLES: dict[str, str] = {"pytorch": "PyTorch", **{name: making.title for name, making in FORMATS.items()}}
"""Format to its title; eager PyTorch is no export."""


def with_sources(wanted: Sequence[Format]) -> list[Format]:
    """Formats in the order in which they can be made, with those that others are made from."""
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

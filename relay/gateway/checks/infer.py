"""Inference, as the open inference protocol, version 2, has it, in JSON."""

import math
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta

from relay.gateway.checks.fields import BODY_MAX, Body, Passed, Request
from relay.gateway.pipeline import Said

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=BODY_MAX)]], Meta(max_length=8)]
Tensors = Meta(min_length=1, max_length=64)


class Tensor(Body):
    """One input, or a part of one."""

    name: Name
    shape: Shape
    datatype: Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32",
                      "FP64", "BYTES"]
    data: Any
    parameters: Passed = UNSET


class Wanted(Body):
    """One output that is asked for."""

    name: Name
    parameters: Passed = UNSET


class InferRequest(Request, kw_only=True):
    """Inference by a model that the route names: tensors in, tensors out."""

    inputs: Annotated[list[Tensor], Tensors]
    outputs: Annotated[list[Wanted], Tensors] | None = None
    id: Annotated[str, Meta(max_length=128)] | None = None
    parameters: Passed = UNSET

    def said(self) -> list[Said]:
        """Nothing: what tensors mean is the model's to know."""
        return []

    def empty(self) -> bool:
        return False

    def fault(self) -> str:
        return next((
            f"inputs[{index}].shape" for index, tensor in enumerate(self.inputs)
            if math.prod(tensor.shape) > BODY_MAX  # more than a body could hold
        ), "")

"""Exclude Cells from mixed precision: the method's Cells compute in the dtype of their inputs."""

from mindspore import nn
from mindspore._c_expression import MixedPrecisionType


class NoAutoCast(nn.Cell):
    """A Cell that mixed precision does not change: it casts neither its inputs nor its parameters.

    The layers around it make its activations float16. Latent weights stay float32 until they are quantized: rounded to
    float16 first, those below 3e-8 would be 0 and lose their sign. Scheduled values would lose digits.
    """

    def add_flags(self, **flags):
        # MindSpore's mixed precision uses these flags to make a Cell cast its inputs and parameters.
        precision = {"fp16", "bf16", "fp32"} & flags.keys()
        if precision:
            # In PyNative mode None would mean the type of the cell around it.
            self.mixed_precision_type = MixedPrecisionType.NOTSET
        return super().add_flags(**{name: on for name, on in flags.items() if name not in precision})

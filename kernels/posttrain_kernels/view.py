"""What a model does to its logits after the output head, as one description that every back-end applies.

    z = softcap(scale * logits) / temperature          softcap(x) = cap * tanh(x / cap)
    dz / dlogits = slope * (1 - tanh^2)                slope = scale / temperature

Left out: a bias and low-rank additions, which are a second product (`dispatch` joins them), and
anything that depends on the position or the token.
"""

from typing import NamedTuple

from torch import Tensor


class View(NamedTuple):
    scale: float = 1.0  # Cohere multiplies its logits by 0.0625, Granite divides them by 8
    softcap: float | None = None  # Gemma 2: 30
    temperature: float = 1.0

    @property
    def slope(self) -> float:
        """dz / dlogits without the factor of the softcap."""
        return self.scale / self.temperature

    def apply(self, logits: Tensor) -> Tensor:
        """z, out of place and differentiable."""
        if self.softcap is not None:
            return (logits * (self.scale / self.softcap)).tanh() * (self.softcap / self.temperature)
        return logits if self.slope == 1 else logits * self.slope

    def apply_(self, logits: Tensor) -> Tensor:
        """z in place of `logits`."""
        if self.softcap is not None:
            logits.mul_(self.scale / self.softcap).tanh_()
            return logits.mul_(self.softcap / self.temperature)
        return logits if self.slope == 1 else logits.mul_(self.slope)

    def bend(self, z: Tensor) -> Tensor:
        """1 - tanh^2 at z: what the softcap multiplies a gradient by. Only with a softcap."""
        return 1 - (z * (self.temperature / self.softcap)).square()

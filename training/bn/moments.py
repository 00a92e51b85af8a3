"""Mean and variance of each channel over any number of batches, pooled in float64; nothing is lost to large means.

Batches are merged as T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances" (1979), merge samples: with a mean and a sum of squared distances from it, never with
E[x^2] - E[x]^2, which in float32 is 0 or negative where the mean is a few thousand standard deviations. Knows no layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Moments:
    """Of weighted values; all float64.

    weight, weight_squared: scalars, sums over the values; their number where each weighs 1. mean: [channels].
    distance_squared: [channels], the weighted sum of squared distances from the mean.
    """

    weight: torch.Tensor
    weight_squared: torch.Tensor
    mean: torch.Tensor
    distance_squared: torch.Tensor

    @classmethod
    def none(cls, channels: int, device: torch.device) -> Moments:
        """Of no value at all."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        zeros = torch.zeros(channels, dtype=torch.float64, device=device)
        return cls(zero, zero.clone(), zeros, zeros.clone())

    @classmethod
    def of(cls, values: torch.Tensor, weights: torch.Tensor | None = None) -> Moments:
        """values: any floating dtype, [rows, channels, ...]. weights: not negative, [rows, ...] without channels, or
        anything that broadcasts to that; without them each value weighs 1."""
        # One row a channel, whatever came between. Copying is most of the work, and float64 is what it is for.
        columns = values.detach().transpose(0, 1).flatten(1).to(torch.float64)
        if weights is None:
            weight = torch.full((), float(columns.shape[1]), dtype=torch.float64, device=columns.device)
            mean = columns.mean(dim=1) if columns.shape[1] else columns.new_zeros(columns.shape[0])
            return cls(weight, weight.clone(), mean, (columns - mean[:, None]).square_().sum(dim=1))
        shape = (values.shape[0], *values.shape[2:])
        flat = weights.detach().to(columns.device, torch.float64).expand(shape).flatten()
        # What counts for nothing may be anything, and 0 times infinity is not a number.
        counts = flat > 0
        columns, flat = columns[:, counts], flat[counts]
        weight = flat.sum()
        mean = (columns * flat).sum(dim=1) / weight.clamp(min=torch.finfo(torch.float64).tiny)
        return cls(weight, flat.square().sum(), mean, (columns - mean[:, None]).square_().mul_(flat).sum(dim=1))

    @property
    def variance(self) -> torch.Tensor:
        """The unbiased estimate, float64 [channels]: what PyTorch's running_var holds. Infinite or not a number where a
        single value has come.

        For weights that say how much a value is worth ("reliability weights"); where all are 1, n - 1 divides.
        """
        return self.distance_squared / (self.weight - self.weight_squared / self.weight)

    def merge(self, other: Moments) -> None:
        """As if the other's values had come here as well."""
        weight = self.weight + other.weight
        share = other.weight / weight.clamp(min=torch.finfo(torch.float64).tiny)
        apart = other.mean - self.mean
        self.distance_squared = self.distance_squared + other.distance_squared + apart.square() * self.weight * share
        self.mean = self.mean + apart * share
        self.weight = weight
        self.weight_squared = self.weight_squared + other.weight_squared

    def packed(self) -> torch.Tensor:
        """All of it in one float64 tensor, for one message to other processes."""
        return torch.cat([self.weight[None], self.weight_squared[None], self.mean, self.distance_squared])

    @classmethod
    def unpacked(cls, packed: torch.Tensor) -> Moments:
        """As `packed` wrote it."""
        channels = (len(packed) - 2) // 2
        return cls(packed[0], packed[1], packed[2 : 2 + channels], packed[2 + channels :])

"""Rollout buffer of PPO on the device where it learns."""

# T steps, N environments

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor

NUMBERS = ("actions", "values", "log_probs", "advantages", "returns")


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's buffer, with observations as one tensor on the device instead of an array in the host's memory.

    2,048 observations of nine pictures of 60 x 80 are 88 MB, which each epoch of an update goes through in
    another order: gathered on the CPU and sent to a GPU, that takes several times as long as learning from
    them. The small numbers stay where SB3 computes with them.
    """

    def reset(self) -> None:
        """Forget everything; the memory of the observations is kept."""
        ((self._key, shape),) = self.obs_shape.items()  # type: ignore[union-attr] - a space of one key
        size = (self.buffer_size, self.n_envs)
        if getattr(self, "_seen", None) is None:
            self._seen = torch.zeros((*size, *shape), dtype=torch.uint8, device=self.device)
        self.actions = np.zeros((*size, self.action_dim), dtype=np.float32)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros(size, dtype=np.float32))
        self.generator_ready = False
        self.pos, self.full = 0, False

    def add(  # type: ignore[override] - a tensor instead of an array
        self,
        obs: dict[str, Tensor],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Append a step of all environments; arguments as in SB3, observations `{key: [N, ...] uint8}`."""
        self._seen[self.pos].copy_(obs[self._key])
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        numbers = torch.stack([value.flatten(), log_prob.flatten()]).cpu().numpy()  # one wait for the device
        self.values[self.pos], self.log_probs[self.pos] = numbers
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def get(self, batch_size: int | None = None) -> Iterator[DictRolloutBufferSamples]:  # type: ignore[override]
        """Yield all steps in a random order, `batch_size` at a time; `[T, N]` is one axis then."""
        assert self.full, "the buffer is not full"
        total = self.buffer_size * self.n_envs
        seen = self._seen.flatten(0, 1)
        numbers: dict[str, Any] = {
            name: torch.from_numpy(getattr(self, name)).flatten(0, 1).to(self.device) for name in NUMBERS
        }
        order = torch.from_numpy(np.random.permutation(total)).to(self.device)
        for index in order.split(batch_size or total):
            chosen = {name: tensor[index] for name, tensor in numbers.items()}
            yield DictRolloutBufferSamples(
                observations={self._key: seen[index]},
                actions=chosen["actions"],
                old_values=chosen["values"],
                old_log_prob=chosen["log_probs"],
                advantages=chosen["advantages"],
                returns=chosen["returns"],
            )

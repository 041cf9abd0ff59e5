"""The settings of `training.rl`: how an agent is trained, measured and watched."""

from __future__ import annotations

from dataclasses import dataclass

from worldsim.errors import WorldError
from worldsim.runtime.config import RuntimeSettings
from worldsim.runtime.cores import check_workers
from worldsim.runtime.cuda_graphs import COMPILE_MODES
from worldsim.settings import check_settings, setting

MODES, ENVS = ("train", "evaluate", "watch"), ("dream", "real", "both")
MAX_DREAMS = 65_536
MAX_SEED = 1_000_000_000
"""Below those of evaluations, however many environments and steps are added to it."""
NUM_EVALUATIONS = 2**32 - 4_000_000_000
"""Seeds that no training and no recording ever draws: of a game's 32 bits, evaluations own the last ones."""
UPDATE_STEPS, MIN_STEPS = 2_048, 8


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """How the agent learns; names as in Stable-Baselines3."""

    n_steps: int = setting(
        0, "Steps of each environment between two updates; 0 makes 2,048 of all, at least 8 each.", minimum=0
    )
    batch_size: int = setting(256, "Steps that a gradient is computed from.", minimum=2)
    n_epochs: int = setting(4, "How often an update goes through all steps.", minimum=1)
    learning_rate: float = setting(3e-4, "At the beginning; it falls to 0 on the way to the end.", above=0)
    gamma: float = setting(0.98, "Weight of a reward a step later.", minimum=0, maximum=1)
    gae_lambda: float = setting(0.95, "Of the generalised advantage estimate.", minimum=0, maximum=1)
    clip_range: float = setting(
        0.2, "How far the probability of an action may move in an update, as a share.", above=0
    )
    ent_coef: float = setting(0.01, "Weight of the entropy.", minimum=0)
    vf_coef: float = setting(0.5, "Weight of the value's loss.", minimum=0)
    max_grad_norm: float = setting(0.5, "Largest norm of the gradient.", above=0)
    reward_scale: float = setting(
        0.01, "What the game's rewards are multiplied by before anything is learned from them.", above=0
    )

    def __post_init__(self) -> None:
        check_settings(self, "ppo.")

    def steps_of(self, num_envs: int) -> int:
        """Return how many steps each of N environments makes between two updates."""
        return self.n_steps or max(MIN_STEPS, UPDATE_STEPS // num_envs)


@dataclass(kw_only=True, slots=True)
class RLConfig(RuntimeSettings):
    """What to do with which agent."""

    mode: str = setting("train", "What to do with the agent.", choices=MODES)
    env: str = setting(
        "dream",
        "Where: dream, in the world; real, in the game that the world was made from; or of mode=evaluate "
        "both, which are then compared.",
        choices=ENVS,
    )
    world: str = setting(
        "doom-take-cover",
        "A shipped world's name, a folder, or a Hugging Face id; with env=real the name of a game is enough.",
    )
    out: str | None = setting(
        None, "Folder of the run, or of the evaluation; null is runs/rl-WORLD-ENV, or outputs/rl-WORLD."
    )
    seed: int = setting(
        0,
        "Of training, and of the start moments that are drawn from recordings. Of mode=evaluate also the "
        "number of the first episode: seed=1000 plays others than seed=0.",
        minimum=0,
        below=MAX_SEED,
    )
    compile: str = setting("auto", "How a GPU is given its kernels (docs/agents.md).", choices=COMPILE_MODES)
    num_envs: int = setting(
        0,
        "Environments at a time; 0 is, for dreams, 256 on a GPU and 8 on a CPU, and for real games one for "
        "each core.",
        minimum=0,
        maximum=MAX_DREAMS,
    )
    max_episode_steps: int = setting(1050, "Frames after which an episode is cut off.", minimum=1)
    action_repeat: int = setting(
        8, "Frames that a trained agent holds an action for; it sees those at which it decides.", minimum=1
    )
    denoising_steps: int | None = setting(None, "Of dreams: passes a frame; null is the world's own.")
    noise_scale: float | None = setting(None, "Of dreams: deviation of the noise; null is the world's own.")
    starts: str | None = setting(
        None, "A recorded dataset at whose moments dreams begin; null is the world's own start moments."
    )
    num_starts: int = setting(256, "Moments of starts that dreams begin at.", minimum=1)
    context_frames: int = setting(32, "Frames of starts that are watched before each.", minimum=1)
    total_steps: int = setting(
        10_000_000, "Training ends after so many decisions in all; the same command goes on there.", minimum=1
    )
    max_minutes: float = setting(0.0, "Minutes after which it ends in any case; 0 is no limit.", minimum=0)
    checkpoint_minutes: float = setting(3.0, "Minutes between two checkpoints.", minimum=0)
    ppo: PPOConfig = setting(PPOConfig, "How the agent learns; names as in Stable-Baselines3.")
    policy: str = setting(
        "ppo", "Of evaluate and watch: ppo, random, scripted, still, to-and-fro, or a policy's folder."
    )
    policies: list[str] = setting([], "Of mode=evaluate: several to compare, [ppo,random] say.")
    policy_folder: str | None = setting(None, "Of policy=ppo; null is the one that ships with the world.")
    deterministic: bool = setting(True, "Press what a learned policy finds likeliest, instead of drawing.")
    period_frames: int = setting(120, "Frames of a run there and back of policy=to-and-fro.", minimum=2)
    episodes: int = setting(100, "Of mode=evaluate: episodes of each player.", minimum=1)
    num_workers: int = setting(0, "Processes that play real games; 0 is one for each core.", minimum=0)
    steps: int = setting(
        0, "Of mode=watch: end after so many frames; 0 never, without a display after an episode.", minimum=0
    )
    headless: bool | None = setting(None, "Of mode=watch: without a window; null looks for a display.")
    record: str | None = setting(
        None,
        "Of mode=watch. FILE.mp4 to record to; null records recordings/rl-0001.mp4, or the next number, "
        "without a display and nothing with one, '' never records.",
    )
    scale: int = setting(0, "Of mode=watch: screen pixels per frame pixel; 0 chooses.", minimum=0)

    def __post_init__(self) -> None:
        RuntimeSettings.__post_init__(self)
        if self.env == "both" and self.mode != "evaluate":
            raise WorldError(f"env=both is of mode=evaluate, got mode={self.mode}")
        if self.mode == "evaluate" and self.seed + self.episodes > NUM_EVALUATIONS:
            given = f"{self.seed} + {self.episodes}"
            raise WorldError(f"seed + episodes must be at most {NUM_EVALUATIONS}, got {given}")
        check_workers(self.num_workers, "num_workers")
        if self.env == "real":
            check_workers(self.num_envs, "num_envs")

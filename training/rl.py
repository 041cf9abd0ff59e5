"""Train an agent in a dream or in the real game, measure it, watch it: `python -m training.rl`.

    python -m training.rl world=doom-take-cover starts=data/doom-take-cover/train out=runs/dream
    python -m training.rl mode=evaluate env=real world=doom-take-cover policies=[runs/dream/policy,random]
    python -m training.rl mode=watch env=real world=doom-take-cover policy=runs/dream/policy

Training leaves OUT/policy, which plays without Stable-Baselines3, OUT/progress.csv and a checkpoint; a killed
run continues when the same command is given again. Evaluation prints a table and writes OUT/ENV.json; with
`env=both` it compares the dream with the game.
"""

from __future__ import annotations

from training.agents.settings import RLConfig
from training.cli.entry import entry


@entry("rl", RLConfig)
def main(config: RLConfig) -> None:
    """Do what `mode` says."""
    # Each mode brings libraries that the others, and a wrong setting, need not wait for.
    if config.mode == "train":
        from training.agents.train import train_agent

        train_agent(config)
    elif config.mode == "evaluate":
        from training.agents.evaluate import evaluate_agents

        evaluate_agents(config)
    else:
        from training.agents.watch import watch_agent

        watch_agent(config)


if __name__ == "__main__":
    main()

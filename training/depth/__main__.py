"""Start of the command."""

from training.depth.train import main

if __name__ == "__main__":
    main()

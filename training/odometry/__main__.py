"""Start of the command."""

from training.odometry.train import main

if __name__ == "__main__":
    main()

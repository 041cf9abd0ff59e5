"""Start of the command."""

from training.ingest.command import main

if __name__ == "__main__":
    main()

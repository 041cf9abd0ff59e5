"""Start of the command."""

from training.import_wan.command import main

if __name__ == "__main__":
    main()

"""Start of the command."""

from training.film.make import main

if __name__ == "__main__":
    main()

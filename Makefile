# The verbs of this project. `make` alone lists them. Run inside a virtual environment.
.DEFAULT_GOAL := help
.PHONY: help install lint types test test-gpu bench play

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 12

install:  ## install everything for development, and the commit hooks
	pip install -e ".[dev]"
	pre-commit install

lint:  ## check style and spelling
	ruff check .
	ruff format --check .
	codespell

types:  ## check types
	pyright

test:  ## run the tests (CPU, about 7 minutes on 2 cores)
	pytest

test-gpu:  ## run the tests that need a CUDA GPU
	pytest -m gpu

bench:  ## measure how fast environments step here, one dream and many; needs no recorded episodes
	python -m training.evaluate benchmark=env

play:  ## open the shipped world in a window
	python play.py

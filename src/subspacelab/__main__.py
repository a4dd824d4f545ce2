"""`python -m subspacelab`, also under `accelerate launch -m subspacelab`."""

from subspacelab.cli import run

if __name__ == "__main__":
    run()

"""`python -m subspacelab`, also under `accelerate launch -m subspacelab`."""

from subspacelab.cli import main

if __name__ == "__main__":
    main()

"""`python -m gradprism`."""

from gradprism.cli.main import main

if __name__ == "__main__":
    main()

"""python run.py stage=STAGE [recipe=NAME] [KEY=VALUE …] [-m]: the command `plumbline`, from a checkout."""

from stages.cli.main import main

if __name__ == "__main__":
    main()

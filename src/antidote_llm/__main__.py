"""``python -m antidote_llm`` is the command ``antidote``."""

from antidote_llm.cli.main import main

if __name__ == "__main__":
    main()

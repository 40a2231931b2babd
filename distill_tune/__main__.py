"""`distill-tune` and `python -m distill_tune`: nothing is imported before Ctrl-C can end it without a traceback."""


def main() -> None:
    try:
        from distill_tune.cli.main import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

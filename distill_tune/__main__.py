try:
    from distill_tune.cli.main import main
except KeyboardInterrupt:  # a rank's first moment
    raise SystemExit(130) from None

main()

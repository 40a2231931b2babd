from distill_tune.cli.main import main

main()

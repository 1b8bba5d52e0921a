from distill.plan.cli import main

main()

from distill.follow.cli import main

main()

from distill.launch.run_pipeline import main

main()

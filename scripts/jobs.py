"""Show the jobs of a sweep: python scripts/jobs.py outputs/SWEEP watch=true"""

from betasigma.launch.scripts import jobs as main

if __name__ == "__main__":
    main()

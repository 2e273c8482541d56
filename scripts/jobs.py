"""Show the jobs of a sweep: python scripts/jobs.py outputs/SWEEP watch=true"""

from betasigma.launch.scripts import APPS

main = APPS["jobs"]

if __name__ == "__main__":
    main()

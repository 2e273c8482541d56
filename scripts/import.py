"""Turn a published model into a run: python scripts/import.py from=model.pt to=outputs/model"""

from betasigma.launch.scripts import APPS

main = APPS["import"]

if __name__ == "__main__":
    main()

"""Write a trained model for other tools: python scripts/export.py run=outputs/… to=diffusers"""

from betasigma.launch.scripts import APPS

main = APPS["export"]

if __name__ == "__main__":
    main()

"""Edit images by a trained model: python scripts/edit.py run=outputs/… edit=inpaint"""

from betasigma.launch.scripts import APPS

main = APPS["edit"]

if __name__ == "__main__":
    main()

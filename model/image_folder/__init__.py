"""Pictures of one's own, in a folder with a sub-folder a class: model/datasets.py loads it as `folder:PATH`."""

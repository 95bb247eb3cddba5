"""Sources of encoded images and their labels: prepared TFDS datasets, and folders of images.

protocol         the protocol of all sources
opening          opening a source by its name

tfds             a split of a prepared TFDS dataset

folder           a split of a folder, or a list of files
folder_contents  the splits and classes of a folder
folder_scan      finding the images of each class
folder_splits    the splits of a folder: its own, or a fifth of each class for testing
folder_messages  messages about a scanned folder
class_warnings   warnings about classes that only one split has
folder_hints     hints for error messages if splits or classes are missing

split_notation   TFDS's notation for splits, such as "train[:90%]"
relabelling      a split with the labels of another dataset
"""

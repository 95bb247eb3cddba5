"""Resized datasets: copies of a dataset, or of a folder of images, with smaller images, as TFDS datasets.

resized   preparing a resized dataset
origin    the original of a resized dataset
builder   the TFDS builder that writes a resized dataset
image     scaling one image
workers   the processes that scale images
"""

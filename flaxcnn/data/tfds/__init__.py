"""Builders of TFDS datasets, and their preparation.

builders      finding a builder, and checking that its examples are labeled images
preparation   downloading and preparing a dataset
staged_files  using files that the user has downloaded
digits        the builder of scikit-learn's digits
cleanup       removing files of a preparation that fails or is killed
"""

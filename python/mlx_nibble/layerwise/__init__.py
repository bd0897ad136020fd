"""A model, one layer at a time: its matrices, inputs and Hessians."""

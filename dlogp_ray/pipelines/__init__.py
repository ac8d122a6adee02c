"""The only room that imports ray: one file and one visible Ray Data chain a job."""

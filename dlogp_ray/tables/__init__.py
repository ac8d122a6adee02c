"""What every table goes through: schemas, conditional create, opening and sealing a run, SQL."""

"""What every table goes through: kinds of tables, commit, opening and sealing a run, SQL."""

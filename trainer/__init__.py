"""The heavy side: loads, trains, evaluates and generates; knows no database and no screen."""

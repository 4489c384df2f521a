"""Plain Optuna, and a data frame, on the database that qsched keeps.

python examples/optuna_and_pandas.py demo sqlite:///storage/qsched.db
"""

import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
name, url = sys.argv[1:]
study = optuna.load_study(study_name=name, storage=url)
print(
    f"trial {study.best_trial.number} is the best of {len(study.trials)}: {study.best_value:+.3f}"
)

frame = study.trials_dataframe(attrs=("number", "value", "params", "state", "user_attrs"))
finished = frame[frame["state"] == "COMPLETE"].set_index("number")
numbers = finished.filter(regex="value_JAQ|params_").rename(
    columns=lambda key: key[key.find("_") + 1 :]
)
print("\nthe three best trials")
print(numbers.nlargest(3, "JAQ").T.round(3).to_string())
print("\nrank correlation with JAQ")
print(numbers.rank().corr()["JAQ"].drop("JAQ").round(2).to_string())

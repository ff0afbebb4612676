8
rows-`a`.`b`rows2mysql-01-`a`.`b`:mysql-02-`a`.`b`
BEGIN TRANSACTION;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('id','3a444c957ee2ee83');
INSERT INTO "meta" VALUES('study','7a9d0a6554f9790e6c6490d978a6b66e614c9842b946cdf8d65b723cfacec294');
INSERT INTO "meta" VALUES('videos','c8a432e4d004bc343cd92ba5f59705de8866f578d63bfd9e0725c2ff76115bd4');
CREATE TABLE raters (name TEXT PRIMARY KEY, joined REAL NOT NULL);
INSERT INTO "raters" VALUES('Ada',1.79609564678160071372e+09);
INSERT INTO "raters" VALUES('Ben @home',1.79609564680917310709e+09);
CREATE TABLE tasks (
    rater TEXT NOT NULL REFERENCES raters, item TEXT NOT NULL, given REAL NOT NULL,
    answers TEXT, comment TEXT NOT NULL DEFAULT '', seconds REAL, answered REAL,
    PRIMARY KEY (rater, item)
);
INSERT INTO "tasks" VALUES('Ada','47c1e6e41fd04f0f',1.79609564678642773631e+09,'{"alignment": "right_much", "fidelity": "right_much", "quality": "right_much", "overall": "right_much"}','clear',4.5,1.79609564679037904738e+09);
INSERT INTO "tasks" VALUES('Ada','929fe68976062eb6',1.79609564679119062418e+09,'{"alignment": "right_much", "fidelity": "right_much", "quality": "right_much", "overall": "right_much"}','clear',4.5,1.79609564679455947873e+09);
INSERT INTO "tasks" VALUES('Ada','89ec2f817e2144cb',1.79609564679521393777e+09,'{"alignment": "left_much", "fidelity": "left_much", "quality": "left_much", "overall": "left_much"}','clear',4.5,1.79609564679853320125e+09);
INSERT INTO "tasks" VALUES('Ada','280dff0755440177',1.79609564679913043978e+09,'{"alignment": "left_much", "fidelity": "left_much", "quality": "left_much", "overall": "left_much"}','clear',4.5,1.79609564680221605302e+09);
INSERT INTO "tasks" VALUES('Ada','1e19de354cd0a10e',1.79609564680273294445e+09,'{"alignment": "right_much", "fidelity": "right_much", "quality": "right_much", "overall": "right_much"}','clear',4.5,1.79609564680590772628e+09);
INSERT INTO "tasks" VALUES('Ben @home','1e19de354cd0a10e',1.79609564681276822088e+09,'{"alignment": "left_much", "fidelity": "left_much", "quality": "left_much", "overall": "left_much"}','=1+1',4.5,1.79609564681605553626e+09);
INSERT INTO "tasks" VALUES('Ben @home','47c1e6e41fd04f0f',1.79609564681673097613e+09,'{"alignment": "left_much", "fidelity": "left_much", "quality": "left_much", "overall": "left_much"}','=1+1',4.5,1.79609564682055544856e+09);
INSERT INTO "tasks" VALUES('Ben @home','929fe68976062eb6',1.7960956468212981224e+09,NULL,'',NULL,NULL);
COMMIT;
